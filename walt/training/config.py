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


Reaction = Literal["skip", "roll_back", "stop"]


@dataclass(frozen=True)
class AnomalyConfig:
    """What to do when numbers go wrong.

    To "skip" leaves out the update and counts it, to "roll_back" goes on from the last checkpoint without the batch (its ids are listed in
    `skipped_batches.<process>.jsonl`), to "stop" ends the run.

    `loss`, `gradients`: when they are not finite; their update is never applied. `spike`: when a loss lies more than `spike_deviations`
    above the median of the `spike_window` losses before it (but for the very last, which is not known yet), in units of their spread or
    of a hundredth of the median, whichever is larger. `max_skipped_batches`: so many batches may be left out by rolling back. `repeat_every`:
    every so many steps a step is run twice, for as much memory again, and a run whose results differ in a single bit is stopped.
    """

    loss: Reaction = "stop"
    gradients: Reaction = "skip"
    spike: Literal["ignore", "skip", "roll_back", "stop"] = "ignore"
    spike_deviations: float = 20.0
    spike_window: int = 100
    max_skipped_batches: int = 10
    repeat_every: int | None = None

    def __post_init__(self) -> None:
        _require(self.spike_deviations > 0, "anomalies.spike_deviations must be positive", self.spike_deviations)
        _require(self.spike_window >= 2, "anomalies.spike_window must be at least 2", self.spike_window)
        limit = self.max_skipped_batches
        _require(limit >= 0, "anomalies.max_skipped_batches must not be negative", limit)
        every = self.repeat_every
        _require(every is None or every >= 1, "anomalies.repeat_every must be at least 1 or None", every)


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run counts as hanging.

    `slow_factor`: a step, or the wait for its batch, that takes so many times the median (and `slow_seconds`) has the stacks of all threads
    written to the log and to `stacks.<process>.txt`. `fail_seconds`: nothing at all takes longer, an evaluation neither; then the run
    fails. None turns either off. `heartbeat_seconds`: how often `heartbeat.<process>.json` is written.
    """

    slow_factor: float | None = 20.0
    slow_seconds: float = 10.0
    fail_seconds: float | None = 7200.0
    heartbeat_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("slow_factor", "slow_seconds", "fail_seconds", "heartbeat_seconds"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"watchdog.{name} must be positive", value)


@dataclass(frozen=True)
class SavingConfig:
    """Which checkpoints stay beside the last `keep_checkpoints`, and what happens when one cannot be written.

    `keep_every_hours`: one of every so many hours. `keep_best`: so many with the lowest `best_metric`, such as "heldout/loss" (the highest,
    with `best_is_highest`), of the steps at which it was measured. `disk_full`: whether a run that finds no space for a checkpoint
    stops, or goes on and tries again with the next one; the last one of a run, and a job of several processes, always stop.
    """

    keep_every_hours: float | None = None
    keep_best: int = 0
    best_metric: str = "heldout/loss"
    best_is_highest: bool = False
    disk_full: Literal["stop", "go_on"] = "stop"

    def __post_init__(self) -> None:
        hours = self.keep_every_hours
        _require(hours is None or hours > 0, "saving.keep_every_hours must be positive or None", hours)
        _require(self.keep_best >= 0, "saving.keep_best must not be negative", self.keep_best)


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. A step is one optimiser update from one global batch, whatever `accumulation` is.

    `accumulation`: the batch is processed in that many parts, one after another, for the memory of one part.
    `clip_norm`: largest l2 norm of the gradients of one parameter group; None turns clipping off. `ema_decay`: decay of
    the moving average of parameters; None keeps none; the groups in `ema_excluded` never have one. `max_skipped_steps`:
    so many updates in a row may be skipped for non-finite gradients before the run stops.
    `collectives_on_sparse_cores`: TPUs that have SparseCores (from v5p on, but for v5e) exchange weights and gradients
    there, while the rest of the chip computes.
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
    collectives_on_sparse_cores: bool = True
    anomalies: AnomalyConfig = field(default_factory=AnomalyConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)

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
