"""Settings of diffusion training and of sampling."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from walt.config import ConfigError
from walt.diffusion import parameterisation, process


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """How the denoiser is trained; part of the model, since sampling must use the same process and prediction.

    Attributes:
      schedule: `linear` (beta 1e-4 to 0.02) or `cosine`.
      zero_terminal_snr: rescale so that t = 1 is pure noise (W.A.L.T: FVD 60.7 with, 91.0 without).
      prediction: what the network outputs: `v`, `noise` or `x0`.
      loss_weight: `uniform` is the squared error of the prediction at every time alike (W.A.L.T). `snr` is the squared error
        of x0 times the signal-to-noise ratio alpha²/sigma², kept within `snr_bounds`.
      snr_bounds: (0, 5) is min-SNR (Hang et al. 2023); (1, 1e9), above every ratio of these schedules, is truncated SNR
        (Salimans & Ho 2022).
      self_conditioning_rate: probability, per batch row, that the network sees its own first estimate of x0. 0 costs
        nothing; any other value costs one extra forward pass of the whole batch per step.
      text_dropout: probability, per caption, of training with the learned null text, which guidance needs (0.1 is our
        choice).
      caption_length: tokens per caption, padded or cut, in training and in sampling.
    """

    schedule: process.ScheduleName = "linear"
    zero_terminal_snr: bool = True
    prediction: parameterisation.Prediction = "v"
    loss_weight: Literal["uniform", "snr"] = "uniform"
    snr_bounds: tuple[float, float] = (1.0, 5.0)
    self_conditioning_rate: float = 0.9
    text_dropout: float = 0.1
    caption_length: int = 24

    def __post_init__(self):
        parameterisation.check_pair(self.prediction, self.make_schedule())
        self._check_loss_weight()
        for name in ("self_conditioning_rate", "text_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not a probability, expected 0 to 1")
        if self.caption_length < 1:
            raise ConfigError(f"caption_length: {self.caption_length} is too short, expected at least 1 token")

    def _check_loss_weight(self) -> None:
        if self.loss_weight not in ("uniform", "snr"):
            raise ConfigError(f"loss_weight: unknown weight {self.loss_weight!r}, expected 'uniform' or 'snr'")
        low, high = self.snr_bounds
        if not 0 <= low <= high or high == 0 or math.isinf(high):
            raise ConfigError(
                f"snr_bounds: {self.snr_bounds} are no bounds, expected 0 <= low <= high, and high above 0 and finite"
            )
        if self.loss_weight == "snr" and low == 0 and self.zero_terminal_snr:
            raise ConfigError(
                "snr_bounds: with zero_terminal_snr a lower bound of 0 gives no weight to t = 1, where sampling starts; "
                "use a positive one, such as 1"
            )

    def make_schedule(self) -> process.Schedule:
        """The schedule's tables."""
        return process.make_schedule(self.schedule, self.zero_terminal_snr)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How latents are drawn from a trained denoiser by DDIM.

    Attributes:
      steps: network evaluations (two at once with guidance), 1 to 1000.
      spacing: `trailing` (t = 1 first, then equal strides down to 0) or `linspace` (t = 1 to 1/1000 in equal strides,
        then 0).
      eta: 0 is the deterministic DDIM, 1 adds as much noise as ancestral sampling.
      guidance: classifier-free guidance scale; 1 is none, 0 ignores the prompt.
      guidance_schedule: `constant`, or `power_cosine`: 1 at t = 1 rising to `guidance` at t = 0.
      guidance_power: exponent s of the power cosine.
    """

    steps: int = 50
    spacing: Literal["trailing", "linspace"] = "trailing"
    eta: float = 0.0
    guidance: float = 1.0
    guidance_schedule: Literal["constant", "power_cosine"] = "constant"
    guidance_power: float = 4.0

    def __post_init__(self):
        if not 1 <= self.steps <= process.NUM_TIMESTEPS:
            raise ConfigError(f"steps: {self.steps} is out of range, expected 1 to {process.NUM_TIMESTEPS}")
        if self.spacing not in ("trailing", "linspace"):
            raise ConfigError(f"spacing: unknown spacing {self.spacing!r}, expected 'trailing' or 'linspace'")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta: {self.eta} is out of range, expected 0 to 1")
        if self.guidance < 0:
            raise ConfigError(f"guidance: {self.guidance} is negative, expected 0 or more (1 is no guidance)")
        if self.guidance_schedule not in ("constant", "power_cosine"):
            raise ConfigError(
                f"guidance_schedule: unknown {self.guidance_schedule!r}, expected 'constant' or 'power_cosine'"
            )
        if self.guidance_power <= 0:
            raise ConfigError(f"guidance_power: {self.guidance_power} must be positive")
