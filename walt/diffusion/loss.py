"""The training loss of a prediction at some time."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.diffusion import parameterisation
from walt.diffusion.configs import DiffusionConfig


def frame_losses(
    config: DiffusionConfig,
    value: Float[Array, "b f ..."],
    x_t: Float[Array, "b f ..."],
    x0: Float[Array, "b f ..."],
    noise: Float[Array, "b f ..."],
    alpha: Float[Array, "b f ..."],
    sigma: Float[Array, "b f ..."],
    counted: Float[Array, "b f ..."] | None = None,
) -> Float[Array, "b f"]:
    """Loss of each frame for the predicted `value`, by `config.loss_weight`. The mean over a row's frames is the mean over what is
    `counted` in it (1, and 0 for what the network was shown): the frames that count weigh more for those that do not. Rows never
    mix: the mean over a batch may be taken in any split."""
    share = 1.0 if counted is None else counted / counted.mean(tuple(range(1, counted.ndim)), keepdims=True)
    if config.loss_weight == "uniform":
        target = parameterisation.from_x0_and_noise(config.prediction, x0, noise, alpha, sigma)
        return mean_squared_error(value, target, share)
    estimate, _ = parameterisation.to_x0_and_noise(config.prediction, value, x_t, alpha, sigma)
    return mean_squared_error(estimate, x0, share * x0_weight(config, jnp.square(alpha / sigma)))


def x0_weight(config: DiffusionConfig, snr: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weight of the squared error of x0 at a signal-to-noise ratio, see `DiffusionConfig.loss_weight`."""
    match config.loss_weight:
        case "snr":
            return jnp.clip(snr, *config.snr_bounds)
        case "p2":
            k, gamma = config.p2
            return snr / (k + snr) ** gamma
        case "edm":
            return 1 + snr
        case "uniform":
            raise ValueError("the uniform loss is one of the prediction, not of x0")


def mean_squared_error(
    prediction: Float[Array, "b f ..."], target: Float[Array, "b f ..."], weight: Float[Array, "b f ..."] | float = 1.0
) -> Float[Array, "b f"]:
    """Mean over each frame of the weighted squared error, in float32 or wider."""
    error = prediction.astype(jnp.promote_types(jnp.float32, prediction.dtype)) - target
    return jnp.mean(weight * jnp.square(error), axis=tuple(range(2, error.ndim)))
