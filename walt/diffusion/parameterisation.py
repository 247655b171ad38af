"""What the network predicts, and how to go from one prediction to another: always through the pair (x0, noise).

`v` = alpha noise − sigma x0 (Salimans & Ho 2022 up to naming; W.A.L.T prints another sign and order). The formulas use
alpha² + sigma² = 1.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.diffusion.process import Schedule

Prediction = Literal["v", "noise", "x0"]
_NAMES = ("v", "noise", "x0")


def check_pair(prediction: str, schedule: Schedule) -> None:
    """Refuses a prediction from which x0 cannot be recovered at some time of the schedule.

    Raises:
      ConfigError: the prediction is unknown, or it is `noise` and the schedule has zero terminal SNR: there x_1 is the
        noise itself, and x0 = (x_1 − noise) / 0.
    """
    if prediction not in _NAMES:
        raise ConfigError(f"prediction: unknown prediction {prediction!r}, expected one of {', '.join(_NAMES)}")
    if prediction == "noise" and schedule.has_zero_terminal_snr:
        raise ConfigError(
            "prediction: 'noise' cannot be used with zero_terminal_snr=True, since pure noise says nothing of the data; "
            "use prediction='v' or zero_terminal_snr=False"
        )


def to_x0_and_noise(
    prediction: Prediction,
    value: Float[Array, "..."],
    x_t: Float[Array, "..."],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(x0, noise) that the predicted `value` stands for at `x_t`; `alpha` and `sigma` broadcast against `x_t`."""
    if prediction == "v":
        return alpha * x_t - sigma * value, sigma * x_t + alpha * value
    if prediction == "noise":
        return (x_t - sigma * value) / alpha, value
    return value, (x_t - alpha * value) / sigma


def from_x0_and_noise(
    prediction: Prediction,
    x0: Float[Array, "..."],
    noise: Float[Array, "..."],
    alpha: Float[Array, "..."],
    sigma: Float[Array, "..."],
) -> Float[Array, "..."]:
    """The value a network of this kind should predict for (x0, noise); inverse of `to_x0_and_noise`."""
    if prediction == "v":
        return alpha * noise - sigma * x0
    return noise if prediction == "noise" else x0
