"""How a call samples: what it may ask for, and what a batch of videos is then made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from walt.config import ConfigError
from walt.diffusion.configs import SamplerConfig
from walt.diffusion.process import Schedule
from walt.generation.canvas import Sheet
from walt.generation.request import GenerationError, check_count


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of every task; None is the bundle's choice.

    Attributes:
      steps: denoising steps.
      guidance: how strongly to follow the prompt, 1 being not at all beyond what was learned, 0 ignoring it.
      solver: how the steps are taken, see `SamplerConfig`.
      visits: how often each step is taken (RePaint), see `SamplerConfig`.
      seed: what the noise is drawn from.
      negative_prompt: what to steer away from, in place of no text; has no effect with guidance 1.
      fps, motion: of a model that is told these, frames per second and the mean absolute change between latent frames.
      reuse: up to which change of its first unit the transformer's other units are not computed again, 0 to 1, see `SamplerConfig`.
    """

    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    visits: int | None = None
    seed: int = 0
    negative_prompt: str | None = None
    fps: float | None = None
    motion: float | None = None
    reuse: float | None = None

    def unprompted(self) -> Sampling:
        """The same without a prompt, of a model that reads them."""
        return dataclasses.replace(self, guidance=0.0, negative_prompt=None)

    def sampler(self, of_bundle: SamplerConfig, schedule: Schedule) -> SamplerConfig:
        """The bundle's sampler with these choices. Raises `GenerationError` if the schedule does not take them."""
        changes: dict[str, Any] = {} if self.solver is None else {"solver": self.solver}
        for name in ("steps", "visits"):
            if getattr(self, name) is not None:
                changes[name] = check_count(name, getattr(self, name))
        for name in ("guidance", "reuse"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise GenerationError(f"{name} must be a finite number, got {value!r}")
            changes[name] = float(value)
        try:
            sampler = dataclasses.replace(of_bundle, **changes)
            sampler.check_schedule(schedule)
            return sampler
        except ConfigError as error:
            raise GenerationError(str(error)) from error


DEFAULT = Sampling()


@dataclasses.dataclass(frozen=True)
class Order:
    """A batch of videos to make, a row each: `shape` (F, h, w, c) of their latents, tokens or labels of prompts, and what else is given. Row i is
    drawn from (seed, numbers[i])."""

    shape: tuple[int, int, int, int]
    count: int
    prompts: Any
    negative: Any
    sampler: SamplerConfig
    seed: int
    scalars: dict[str, float]
    numbers: Int[np.ndarray, " n"]
    canvas: Sheet | None = None
    low_resolution: UInt8[np.ndarray, "n t i j 3"] | None = None
    circular: bool = False
