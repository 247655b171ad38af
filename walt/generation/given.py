"""What a call gives a model beside prompts: latents of low resolution, latents of known first frames, numbers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion.conditions import Conditions, given_low_resolution
from walt.diffusion.process import Schedule


class Given(NamedTuple):
    """A row per video; None, or left out of `scalars`, where nothing is given.

    Attributes:
      low_resolution: clean latents of the videos to make larger.
      first: clean latents of the first frames.
      scalars: frame rate and motion, see `walt.transformer.config.SCALARS`.
    """

    low_resolution: Float[Array, "b f i j c"] | None = None
    first: Float[Array, "b k h w c"] | None = None
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
        if self.first is None:
            return given
        count = self.first.shape[1]
        known = jnp.zeros((rows, *shape), self.first.dtype).at[:, :count].set(self.first)
        mask = jnp.zeros((rows, *shape[:-1], 1), self.first.dtype).at[:, :count].set(1.0)
        return given._replace(known=known, known_mask=mask)
