"""Classifier-free guidance (Ho & Salimans 2022): follow the prompt more than the data does.

The guided prediction is null + scale (conditional − null). At fixed x_t every prediction is an affine function of every other, so guiding v, noise or x0 is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.samplers import Denoise


def guidance_scale(config: SamplerConfig, strength: Float[Array, ""] | float, t: Float[Array, "b f"]) -> Float[Array, "b f"]:
    """The scale w(t) for a guidance `strength` (usually `config.guidance`).

    Power cosine: w(t) = 1 + (strength − 1) ½ (1 − cos(π (1 − t)^s)), the W.A.L.T ImageNet schedule.
    """
    if config.guidance_schedule == "constant":
        return jnp.full_like(t, strength)
    return 1 + (strength - 1) * 0.5 * (1 - jnp.cos(jnp.pi * (1 - t) ** config.guidance_power))


def classifier_free(
    denoise: Callable[[Array, Array, Array, Any], Array],
    condition: Any,
    null_condition: Any,
    scale: Callable[[Array], Array],
) -> Denoise:
    """A `Denoise` that runs both branches as one doubled batch.

    `denoise(x_t, t, previous_x0, condition)` takes a condition whose arrays lead with the row axis; `scale(t)` gives w [B, F]. Both branches see the same
    previous_x0.
    """
    conditions = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), condition, null_condition)

    def guided(x_t, t, previous_x0):
        def twice(x):
            return jnp.concatenate([x, x])

        with_condition, without = jnp.split(denoise(twice(x_t), twice(t), twice(previous_x0), conditions), 2)
        weight = scale(t)
        weight = weight.reshape(weight.shape + (1,) * (x_t.ndim - weight.ndim))
        return without + weight * (with_condition - without)

    return guided
