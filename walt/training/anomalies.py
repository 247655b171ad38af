"""Numbers that go wrong: losses and gradients that are not finite, losses that jump. What follows is `AnomalyConfig`.

Rolling back is resuming: the run goes on from its last checkpoint as if it had been started again, and the batch that did it is consumed
without an update. Which batches these are stands in `skipped_batches.<process>.jsonl` of the work directory, one line per batch, so that
a run that is stopped and started again leaves out the same ones.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from walt import jsonlines
from walt.training.checkpoint import Clock, RollBack
from walt.training.config import TrainingConfig
from walt.untrusted import field

FILE = "skipped_batches.{process}.jsonl"
GAUSSIAN = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution


class NonFiniteError(FloatingPointError):
    """A loss, or the gradients of too many steps in a row, became infinite or not a number; the message names the
    step.
    """


class LossSpikeError(RuntimeError):
    """A loss jumped, or too many batches were left out; the message names the step."""


class SkippedBatches:
    """The batches of a work directory that rolling back has left out, by step, from 0.

    Args:
      ids: the ids of the examples of this process in the batch of a step, for the list.
    """

    def __init__(self, workdir: epath.PathLike, ids: Callable[[int], Any] | None):
        self._folder, self._ids = epath.Path(workdir), ids
        self.steps: set[int] = set()
        for path in self._folder.glob(FILE.format(process="*")) if self._folder.is_dir() else ():
            self.steps |= set(_read(path))

    def add(self, step: int, reason: str) -> None:
        """Raises `OSError` if that cannot be written down: the batch would come again after the next start."""
        self.steps.add(step)
        ids = None if self._ids is None else np.asarray(self._ids(step)).tolist()
        logging.warning("batch %d, from 0, is left out from now on: %s; its examples: %s", step, reason, ids)
        entry = {"step": step, "reason": reason, "example_ids": ids}
        jsonlines.append(self._folder / FILE.format(process=jax.process_index()), [entry])


def _read(path: epath.Path) -> Iterator[int]:
    """The steps in a list."""
    for entry in jsonlines.read(path):
        with contextlib.suppress(ValueError):
            yield field(entry, "step", int)


class Judge:
    """Looks at the metrics of every update, and remembers the losses that spikes are measured against. The same on every process."""

    def __init__(self, config: TrainingConfig, clock: Clock, skipped: SkippedBatches):
        self._anomalies, self._max_in_a_row = config.anomalies, config.max_skipped_steps
        self._skipped = skipped
        self.in_a_row = clock.skipped_in_a_row
        self.losses = [(int(update), loss) for update, loss in clock.losses]

    def loss_limit(self, update: int) -> float:
        """Above which the loss of an update is a spike. The last loss before it plays no part: whether it has been read yet depends on
        when the run was saved, and the limit must not."""
        window = [loss for number, loss in self.losses if number <= update - 2][-self._anomalies.spike_window :]
        if len(window) < self._anomalies.spike_window:
            return math.inf
        middle = statistics.median(window)
        spread = GAUSSIAN * statistics.median(abs(loss - middle) for loss in window)
        return middle + self._anomalies.spike_deviations * max(spread, 0.01 * abs(middle))

    def look_at(self, update: int, values: Mapping[str, float]) -> None:
        """Raises `NonFiniteError`, `LossSpikeError` or `RollBack` if that is what the config wants of these metrics."""
        bad = [
            f"{name} is {value}" for name, value in values.items() if name.endswith("loss") and not math.isfinite(value)
        ]
        limit = math.inf if self._anomalies.spike == "ignore" else self.loss_limit(update)
        spike = not bad and values["loss"] > limit
        self.in_a_row = self.in_a_row + 1 if values["skipped"] else 0
        if bad:
            self._react("loss", update, ", ".join(bad), NonFiniteError)
        elif spike:
            reason = f"loss is {values['loss']:.6g}, which is above {limit:.6g}, a jump,"
            self._react("spike", update, reason, LossSpikeError)
        elif values["skipped"]:
            self._react("gradients", update, "a gradient is not finite", NonFiniteError)
        if self._anomalies.spike != "ignore" and not bad and not values["skipped"]:
            self.losses = [*self.losses, (update, values["loss"])][-self._anomalies.spike_window - 1 :]

    def _react(self, kind: str, update: int, reason: str, error: type[Exception]) -> None:
        reaction = getattr(self._anomalies, kind)
        if reaction == "stop":
            raise error(_stopped(update, kind, reason, applied=error is LossSpikeError))
        if reaction == "roll_back":
            if len(self._skipped.steps) >= self._anomalies.max_skipped_batches:
                left_out = ", ".join(map(str, sorted(self._skipped.steps)))
                raise error(
                    f"{reason} at step {update}, after {len(self._skipped.steps)} batches were left out (of steps {left_out}), and "
                    "training.anomalies.max_skipped_batches allows no more; the last good checkpoint is kept"
                )
            self._skipped.add(update - 1, f"{reason} at step {update}")
            raise RollBack
        if self.in_a_row > self._max_in_a_row:
            raise error(
                f"{reason} at step {update}, and the updates of the {self.in_a_row - 1} steps before it were left out as well; the last good "
                "checkpoint is kept"
            )


def _stopped(update: int, kind: str, reason: str, applied: bool) -> str:
    update_too = "" if applied else "the update was not applied, and "
    return (
        f"{reason} at step {update}; {update_too}the last good checkpoint is kept. "
        "Resuming repeats this step exactly: lower training.optimizer.learning_rate or training.clip_norm, move checkpoints away to go back to "
        f"an earlier one, or leave the batch out (--config.training.anomalies.{kind}=roll_back)"
    )
