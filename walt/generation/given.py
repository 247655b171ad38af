"""What a call gives a model beside prompts: latents of low resolution, a canvas of what is known, numbers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion.canvas import Canvas
from walt.diffusion.conditions import Conditions, given_low_resolution
from walt.diffusion.process import Schedule


class Given(NamedTuple):
    """A row per video; None, or left out of `scalars`, where nothing is given.

    Attributes:
      low_resolution: clean latents of the videos to make larger.
      canvas: what is known, and the level of every frame.
      scalars: frame rate and motion, see `walt.transformer.config.SCALARS`.
    """

    low_resolution: Float[Array, "b f i j c"] | None = None
    canvas: Canvas | None = None
    scalars: dict[str, Float[Array, " b"]] | None = None

    def conditions(
        self, schedule: Schedule, shape: tuple[int, ...], low_resolution_time: float, keys: jax.Array
    ) -> Conditions:
        """As the denoiser takes them, for latents of `shape` (F, h, w, c), with the rows' `keys`."""
        rows, frames = keys.shape[0], shape[0]
        given = Conditions()
        if self.low_resolution is not None:
            given = given_low_resolution(schedule, self.low_resolution, low_resolution_time, keys)
        scalars = dict(given.scalars or {})
        for name, values in (self.scalars or {}).items():
            scalars[name] = jnp.broadcast_to(values[:, None], (rows, frames))
        given = given._replace(scalars=scalars or None)
        if self.canvas is None:
            return given
        return given._replace(known=self.canvas.known, known_mask=self.canvas.mask, level=self.canvas.level)
