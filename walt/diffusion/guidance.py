"""Classifier-free guidance (Ho & Salimans 2022): follow the prompt more than the data does.

The guided prediction is null + scale (conditional − null). At fixed x_t every prediction is an affine function of every
other, so guiding v, noise or x0 is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.samplers import Denoise

ConditionalDenoise = Callable[[Array, Array, Array, Any], Array]
Scale = Callable[[Float[Array, "b f"]], Float[Array, "b f"]]


def scale_over_time(config: SamplerConfig, strength: Float[Array, ""] | float) -> Scale:
    """The guidance scale w(t) for a `strength` (usually `config.guidance`), as a function of times [B, F].

    Power cosine: w(t) = 1 + (strength − 1) ½ (1 − cos(π (1 − t)^s)), the W.A.L.T ImageNet schedule.
    """
    if config.guidance_schedule == "constant":
        return lambda t: jnp.full_like(t, strength)
    return lambda t: 1 + (strength - 1) * 0.5 * (1 - jnp.cos(jnp.pi * (1 - t) ** config.guidance_power))


def unguided(denoise: ConditionalDenoise, condition: Any) -> Denoise:
    """A `Denoise` that follows the condition as the data does; half the work of a guided one."""
    return lambda x_t, t, previous_x0: denoise(x_t, t, previous_x0, condition)


def classifier_free(denoise: ConditionalDenoise, condition: Any, null_condition: Any, scale: Scale) -> Denoise:
    """A `Denoise` that runs both branches as one doubled batch.

    `denoise(x_t, t, previous_x0, condition)` takes a condition whose arrays lead with the row axis. Both branches see
    the same previous_x0.
    """
    conditions = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null_condition)

    def guided(x_t: Array, t: Array, previous_x0: Array) -> Array:
        x_t2, t2, x0_2 = (jnp.concatenate([x, x]) for x in (x_t, t, previous_x0))
        with_condition, without = jnp.split(denoise(x_t2, t2, x0_2, conditions), 2)
        weight = scale(t)
        weight = weight.reshape(weight.shape + (1,) * (x_t.ndim - weight.ndim))
        return without + weight * (with_condition - without)

    return guided
