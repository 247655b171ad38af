"""Evaluators as entries of a run's config: what to measure while it trains, and every how many steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from walt.config import ConfigError, nearest
from walt.diffusion.configs import SamplerConfig
from walt.evaluation.protocols import PROTOCOLS


@dataclass(frozen=True)
class Sampling:
    """How to draw samples; None is what the model says of itself."""

    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    seed: int = 0
    reuse: float | None = None

    def of(self, sampler: SamplerConfig) -> SamplerConfig:
        """A sampler with these settings in place of its own; `ConfigError` for what is out of range."""
        chosen: dict[str, Any] = {
            "steps": self.steps,
            "guidance": self.guidance,
            "solver": self.solver,
            "reuse": self.reuse,
        }
        return replace(sampler, **{name: value for name, value in chosen.items() if value is not None})


@dataclass(frozen=True)
class SampleEvaluation:
    """Of stage 2: the distance of samples of the averaged weights to real clips.

    Attributes:
      every: steps from one measurement to the next; the last step is measured too.
      protocol: a name of `walt.evaluation.protocols`.
      samples: how many to draw, one for each caption (or class) of the held-out data, evenly spaced, or in turn.
      real: the real clips: a prepared data set, a folder of videos, or an .npz of `walt evaluate --save_real`; None takes the clips from
        which the latents were made.
      split: of a prepared data set; by default "heldout".
      steps, guidance, solver: of the sampler; None takes what the run's config says.
      batch_size: samples drawn at a time.
      seed: of the samples; the same at every step, so that the curve shows the model and not the draw.
      weights: a file of the network's weights; by default those that are installed.
    """

    every: int
    protocol: str = "tfgan-reference"
    samples: int = 2048
    real: str | None = None
    split: str | None = None
    steps: int | None = None
    guidance: float | None = None
    solver: str | None = None
    batch_size: int = 16
    seed: int = 0
    weights: str | None = None

    def __post_init__(self) -> None:
        _check_counts(self, "every", "samples", "batch_size")
        _check_protocol(self.protocol)
        if self.samples < 2:
            raise ConfigError(f"samples must be at least 2, of which there is a distance, got {self.samples}")

    @property
    def sampling(self) -> Sampling:
        """How its samples are drawn."""
        return Sampling(self.steps, self.guidance, self.solver, self.seed)


@dataclass(frozen=True)
class ReconstructionEvaluation:
    """Of stage 1: held-out clips beside what the averaged weights make of them.

    Attributes:
      every: steps from one measurement to the next; the last step is measured too.
      clips: how many of the split, evenly spaced.
      split: of the run's data.
      protocol: of the distance between clips and reconstructions of the same clips; None measures none. Without the weights of its network, or
        for clips with too few frames for it, it is left out with a warning.
      batch_size: clips reconstructed at a time.
      weights: a file of the network's weights; by default those that are installed.
    """

    every: int
    clips: int = 256
    split: str = "heldout"
    protocol: str | None = "tfgan-reference"
    batch_size: int = 8
    weights: str | None = None

    def __post_init__(self) -> None:
        _check_counts(self, "every", "clips", "batch_size")
        if self.protocol is not None:
            _check_protocol(self.protocol)


def _check_counts(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")


def _check_protocol(name: str) -> None:
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}{nearest(name, PROTOCOLS)}")
