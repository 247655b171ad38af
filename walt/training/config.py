"""How to train: optimiser and loop settings; imports no jax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from walt.config import ConfigError
from walt.parallel.config import MeshConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """One optimiser, used for each parameter group on its own.

    The learning rate rises linearly over `warmup_steps`, then stays ("constant") or falls along a half cosine to
    `final_fraction` of its peak at the last step. `weight_decay` is decoupled (AdamW: multiplied by the learning rate)
    and applies to parameters whose path ends in `decay_pattern`. "adafactor" factors its second moments, clips each
    parameter's update to RMS 1, does not scale by the parameter's size, and keeps a first moment only if `b1` > 0.
    """

    name: Literal["adamw", "adam", "adafactor"] = "adamw"
    learning_rate: float = 5e-4
    warmup_steps: int = 5000
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay_pattern: str = "kernel"

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate must be positive", self.learning_rate)
        _require(self.warmup_steps >= 0, "warmup_steps must not be negative", self.warmup_steps)
        _require(0 <= self.final_fraction <= 1, "final_fraction must be in [0, 1]", self.final_fraction)
        _require(0 <= self.b1 < 1, "b1 must be in [0, 1)", self.b1)
        _require(0 < self.b2 < 1, "b2 must be in (0, 1)", self.b2)
        _require(self.eps > 0, "eps must be positive", self.eps)
        _require(self.weight_decay >= 0, "weight_decay must not be negative", self.weight_decay)
        decays = self.name != "adam" or self.weight_decay == 0
        _require(decays, "weight_decay must be 0 for adam (adamw decays)", self.weight_decay)


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. A step is one optimiser update from one global batch, whatever `accumulation` is.

    `accumulation`: the batch is processed in that many parts, one after another, for the memory of one part.
    `clip_norm`: largest l2 norm of the gradients of one parameter group; None turns clipping off. `ema_decay`: decay of
    the moving average of parameters; None keeps none; the groups in `ema_excluded` never have one. `max_skipped_steps`:
    so many updates in a row may be skipped for non-finite gradients before the run stops.
    """

    num_steps: int = 100_000
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    accumulation: int = 1
    clip_norm: float | None = 1.0
    ema_decay: float | None = 0.9999
    ema_excluded: tuple[str, ...] = ("discriminator",)
    max_skipped_steps: int = 10
    seed: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name in ("num_steps", "log_every", "checkpoint_every", "keep_checkpoints", "accumulation"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm must be positive or None", self.clip_norm)
        decay = self.ema_decay
        _require(decay is None or 0 < decay < 1, "ema_decay must be in (0, 1) or None", decay)
        _require(self.max_skipped_steps >= 0, "max_skipped_steps must not be negative", self.max_skipped_steps)
        if self.optimizer.warmup_steps >= self.num_steps:
            raise ConfigError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps}, but the run ends at "
                f"num_steps = {self.num_steps}: the warm-up must be shorter "
                "than the run (--config.training.optimizer.warmup_steps)"
            )


def _require(condition: bool, message: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{message}, got {value}")
