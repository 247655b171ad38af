"""Which checkpoints stay when a new one is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orbax.checkpoint.checkpoint_managers import preservation_policy

from walt.training.config import SavingConfig


def keeping(last: int, config: SavingConfig, metric: Callable[[int], float | None]) -> Any:
    """The policy, for Orbax: the `last` ones, and those that `config` names by the clock and by the `metric` of their steps."""
    policies: list[Any] = [preservation_policy.LatestN(last)]
    if config.keep_every_hours is not None:
        policies.append(preservation_policy.EveryNSeconds(round(3600 * config.keep_every_hours)))
    if config.keep_best:
        policies.append(_Best(config.keep_best, metric, -1.0 if config.best_is_highest else 1.0))
    return preservation_policy.AnyPreservationPolicy(policies)


@dataclass
class _Best:
    """The `number` of checkpoints with the lowest `sign` x metric; a checkpoint is measured after it is saved, so Orbax's own policy, which
    wants the figure with the save, cannot be used."""

    number: int
    metric: Callable[[int], float | None]
    sign: float

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        measured = {info.step: value for info in checkpoints if (value := self.metric(info.step)) is not None}
        best = sorted(measured, key=lambda step: (self.sign * measured[step], step))[: self.number]
        return [info.step in best for info in checkpoints]
