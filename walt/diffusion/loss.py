"""The training loss: the plain mean squared error of the prediction, unweighted over time (W.A.L.T)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def mean_squared_error(prediction: Float[Array, "b ..."], target: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Loss of each row, in float32 or wider. Rows never mix: the mean over a batch may be taken in any split."""
    error = prediction.astype(jnp.promote_types(jnp.float32, prediction.dtype)) - target
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
