"""Classifier-free guidance (Ho & Salimans 2022): follow the conditions more than the data does.

The guided prediction is null + scale (conditional − null); with several conditions, each has a scale for what it adds to those
before it. At fixed x_t every prediction is an affine function of every other, so guiding v, noise or x0 is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.process import over_frames
from walt.diffusion.samplers import Denoise

ConditionalDenoise = Callable[..., Any]
"""(x_t, t, previous_x0, condition) to a prediction; with what it has kept as well to a prediction and what it keeps, see `samplers`."""
Scale = Callable[[Float[Array, "b f"]], Float[Array, "b f"]]


def scale_over_time(config: SamplerConfig, strength: Float[Array, ""] | float) -> Scale:
    """The guidance scale w(t) for a `strength` (usually `config.guidance`), as a function of times [B, F].

    Power cosine: w(t) = 1 + (strength − 1) ½ (1 − cos(π (1 − t)^s)), the W.A.L.T ImageNet schedule. Outside
    `config.guidance_interval` it is 1.
    """
    low, high = config.guidance_interval

    def scale(t: Float[Array, "b f"]) -> Float[Array, "b f"]:
        risen = jnp.ones_like(t)
        if config.guidance_schedule == "power_cosine":
            risen = 0.5 * (1 - jnp.cos(jnp.pi * (1 - t) ** config.guidance_power))
        return jnp.where((t >= low) & (t <= high), 1 + (strength - 1) * risen, 1.0)

    return scale


def unguided(denoise: ConditionalDenoise, condition: Any) -> Denoise:
    """A `Denoise` that follows the condition as the data does; half the work of a guided one."""
    return lambda x_t, t, previous_x0, *kept: denoise(x_t, t, previous_x0, condition, *kept)


def guided(
    denoise: ConditionalDenoise,
    conditions: Sequence[Any],
    scales: Sequence[Scale],
    *,
    rescale: float = 0.0,
    counted: Float[Array, "b f ..."] | None = None,
) -> Denoise:
    """A `Denoise` that runs all branches as one batch.

    Args:
      denoise: (x_t, t, previous_x0, condition) to a prediction, for a condition whose arrays lead with the row axis. All
        branches see the same previous_x0.
      conditions: from that of nothing to that of everything, such as [null, text] or [null, frames, frames and text].
      scales: one for each step between them, which what this step adds is multiplied by (Brooks et al. 2023, equation 3).
      rescale: how far the guided prediction gets the spread over each row of the unguided one (Lin et al. 2023, equation 16).
      counted: 1 where predictions mean something, and 0 where latents are known; None for everywhere.
    """
    branches = len(conditions)
    assert branches == len(scales) + 1 >= 2
    together = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *conditions)

    def denoise_guided(x_t: Array, t: Array, previous_x0: Array, *kept: Any) -> Any:
        x_each, t_each, x0_each = (jnp.concatenate([x] * branches) for x in (x_t, t, previous_x0))
        predicted = denoise(x_each, t_each, x0_each, together, *kept)
        every, *kept_now = predicted if kept else (predicted,)
        values = jnp.split(every, branches)
        value = values[0]
        for scale, before, after in zip(scales, values[:-1], values[1:], strict=True):
            value = value + over_frames(scale(t), x_t) * (after - before)
        if rescale:
            where = None if counted is None else jnp.broadcast_to(counted > 0, value.shape)
            after, guided = (v.std(tuple(range(1, v.ndim)), keepdims=True, where=where) for v in (values[-1], value))
            value = value * (1 + rescale * (after / guided - 1))
        return (value, *kept_now) if kept else value

    return denoise_guided
