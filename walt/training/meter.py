"""Reads the metrics of each step off the device, one step late, and turns them into log lines.

Late, so that the device never waits for the host: while step n runs, the numbers of step n-1 are read. `flush` catches
up, before anything is saved.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax

from walt.data.bar import progress_bar
from walt.training.checkpoint import Clock
from walt.training.config import TrainingConfig
from walt.training.metrics import MetricLog
from walt.training.task import RowCost


class NonFiniteError(FloatingPointError):
    """A loss, or the gradients of too many steps in a row, became infinite or not a number; the message names the
    step.
    """


class Meter:
    """Means over the steps since the last line, rates, and a progress bar; stops the run when a loss is not finite.

    A line holds means of the task's metrics over its `log_every` steps, and the rates of those steps with the time for
    checkpoints and evaluation taken out.
    """

    def __init__(self, log: MetricLog, clock: Clock, step: int, config: TrainingConfig, cost: RowCost):
        self._log, self._config, self._cost = log, config, cost
        self._sums, self._count, self._skipped = dict(clock.window), clock.window_steps, clock.skipped_in_a_row
        self._pending: tuple[int, int, dict[str, jax.Array]] | None = None
        self._started = self._window_started = time.perf_counter()
        self._seconds_before, self._timed_steps = clock.seconds, 0
        self._bar = progress_bar(
            total=config.num_steps,
            initial=step,
            desc="train",
            unit="step",
            disable=jax.process_index() != 0,
        )

    def add(self, step: int, rows: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of update number `step` (from 1) with `rows` batch rows; reads those of the update
        before.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self.flush()
        self._pending = (step, rows, metrics)

    def flush(self) -> None:
        """Read what was not read yet. Raises `NonFiniteError` naming the step."""
        if self._pending is None:
            return
        (step, rows, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
        self._count, self._timed_steps = self._count + 1, self._timed_steps + 1
        self._skipped = self._skipped + 1 if values["skipped"] else 0
        self._bar.update(1)
        self._refuse_non_finite(step, values)
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            self._write(step, rows)

    def clock(self, *, finished: bool) -> Clock:
        """What a checkpoint has to remember so that a resumed run goes on writing the same lines."""
        seconds = self._seconds_before + time.perf_counter() - self._started
        return Clock(seconds, self._sums, self._count, self._skipped, finished)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside counts towards no rate."""
        began = time.perf_counter()
        yield
        self._window_started += time.perf_counter() - began

    def close(self) -> None:
        self._bar.close()

    def _refuse_non_finite(self, step: int, values: dict[str, float]) -> None:
        bad = [
            f"{name} is {value}" for name, value in values.items() if name.endswith("loss") and not math.isfinite(value)
        ]
        if bad:
            self._log.write(step, values)
            raise NonFiniteError(
                f"{', '.join(bad)} at step {step}; the update was not applied, and the last good checkpoint is kept. "
                "Resuming repeats this step exactly: lower the learning rate or clip_norm, or go back to an earlier one"
            )
        if self._skipped > self._config.max_skipped_steps:
            self._log.write(step, values)
            raise NonFiniteError(
                f"the gradients were not finite at step {step} nor at the {self._skipped - 1} steps before it, "
                "so no update was applied; the last good checkpoint is kept"
            )

    def _write(self, step: int, rows: int) -> None:
        now = time.perf_counter()
        per_second = self._timed_steps / max(now - self._window_started, 1e-9)
        means: dict[str, Any] = {name: total / self._count for name, total in self._sums.items()}
        rates = {
            "steps_per_second": per_second,
            "examples_per_second": per_second * rows,
            "tokens_per_second": per_second * rows * self._cost.tokens,
            "model_flops_per_second": per_second * rows * self._cost.flops,
            "eta_seconds": (self._config.num_steps - step) / per_second,
            "seconds": self._seconds_before + now - self._started,
        }
        self._log.write(step, means | rates)
        self._bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
        self._sums, self._count = {}, 0
        self._window_started, self._timed_steps = now, 0
