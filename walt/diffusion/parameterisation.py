"""What the network predicts, and how to go from one prediction to another: always through the pair (x0, noise).

`v` = alpha noise − sigma x0 (Salimans & Ho 2022 up to naming; W.A.L.T prints another sign and order) uses
alpha² + sigma² = 1. `flow` = noise − x0 is the derivative of flow matching's path. `edm` is the network of Karras et al. 2022
between their c_skip and c_out, for data of unit variance.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.diffusion.process import EDM, Schedule

Prediction = Literal["v", "noise", "x0", "flow", "edm"]
_NAMES = ("v", "noise", "x0", "flow", "edm")


def check_pair(prediction: str, schedule: Schedule) -> None:
    """Refuses a prediction from which (x0, noise) cannot be recovered at some time of the schedule.

    Raises:
      ConfigError: the prediction is unknown, or does not fit the schedule: `noise` where x_1 is the noise itself, since
        x0 = (x_1 − noise) / 0; `v` where alpha² + sigma² is not 1; `edm` where the data are scaled.
    """
    if prediction not in _NAMES:
        raise ConfigError(f"prediction: unknown prediction {prediction!r}, expected one of {', '.join(_NAMES)}")
    if prediction == "noise" and schedule.has_zero_terminal_snr:
        raise ConfigError(
            "prediction: 'noise' cannot be used where t = 1 is pure noise, which says nothing of the data (flow matching, or "
            "zero_terminal_snr=True); use another prediction, or zero_terminal_snr=False"
        )
    if prediction == "v" and not schedule.variance_preserving:
        raise ConfigError("prediction: 'v' needs a schedule with alpha² + sigma² = 1: linear, cosine or sigmoid")
    if prediction == "edm" and not isinstance(schedule, EDM):
        raise ConfigError("prediction: 'edm' needs schedule='edm', whose preconditioning it undoes")


def to_x0_and_noise(
    prediction: Prediction,
    value: Float[Array, "..."],
    x_t: Float[Array, "..."],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(x0, noise) that the predicted `value` stands for at `x_t`; `alpha` and `sigma` broadcast against `x_t`."""
    match prediction:
        case "v":
            return alpha * x_t - sigma * value, sigma * x_t + alpha * value
        case "noise":
            return (x_t - sigma * value) / alpha, value
        case "x0":
            return value, (x_t - alpha * value) / sigma
        case "flow":
            return (x_t - sigma * value) / (alpha + sigma), (x_t + alpha * value) / (alpha + sigma)
        case "edm":
            variance = 1 + jnp.square(sigma)
            c_skip, c_out = 1 / variance, sigma / jnp.sqrt(variance)
            return c_skip * x_t + c_out * value, (sigma * x_t - jnp.sqrt(variance) * value) / variance


def from_x0_and_noise(
    prediction: Prediction,
    x0: Float[Array, "..."],
    noise: Float[Array, "..."],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> Float[Array, "..."]:
    """The value a network of this kind should predict for (x0, noise); inverse of `to_x0_and_noise`."""
    match prediction:
        case "v":
            return alpha * noise - sigma * x0
        case "noise":
            return noise
        case "x0":
            return x0
        case "flow":
            return noise - x0
        case "edm":
            return (sigma * x0 - noise) / jnp.sqrt(1 + jnp.square(sigma))
