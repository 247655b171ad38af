"""Reads the metrics of each step off the device, one step late, and turns them into log lines.

Late, so that the device never waits for the host: while step n runs, the numbers of step n-1 are read. `flush` catches
up, before anything is saved.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from walt.data.bar import progress_bar
from walt.training.anomalies import Judge
from walt.training.checkpoint import Clock
from walt.training.config import TrainingConfig
from walt.training.metrics import MetricLog
from walt.training.task import RowCost
from walt.training.watchdog import Watchdog


class Meter:
    """Means over the steps since the last line, rates, and a progress bar; lets the judge and the watchdog know of every step.

    A line holds means of the task's metrics over its `log_every` steps, the rates of those steps with the time for
    checkpoints and evaluation taken out, and the `counts` at that step.
    """

    def __init__(
        self,
        log: MetricLog,
        clock: Clock,
        step: int,
        config: TrainingConfig,
        cost: RowCost,
        judge: Judge,
        watchdog: Watchdog,
        counts: Callable[[int], Mapping[str, float]],
    ):
        self._log, self._config, self._cost, self._counts = log, config, cost, counts
        self._judge, self._watchdog = judge, watchdog
        self._sums, self._count, self._unusable = dict(clock.window), clock.window_steps, clock.window_skipped
        self._pending: tuple[int, int, Mapping[str, Any]] | None = None
        self._started = self._window_started = time.perf_counter()
        self._seconds_before, self._timed_steps = clock.seconds, 0
        self._bar = progress_bar(
            total=config.num_steps,
            initial=step,
            desc="train",
            unit="step",
            disable=jax.process_index() != 0,
        )

    def add(self, step: int, rows: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of update number `step` (from 1) with `rows` batch rows; reads those of the update
        before. None at all are those of a batch that was left out.
        """
        for value in metrics.values():
            value.copy_to_host_async()
        self.flush()
        self._pending = (step, rows, metrics)

    def flush(self) -> None:
        """Read what was not read yet. Raises what `Judge.look_at` does."""
        if self._pending is None:
            return
        (step, rows, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._timed_steps += 1
        self._bar.update(1)
        self._watchdog.beat(step, values)
        if values:
            self._look_at(step, values)
        if values and all(map(math.isfinite, values.values())):
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in values.items()}
            self._count += 1
        else:
            self._unusable += 1
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            self._write(step, rows)

    def clock(self, *, finished: bool) -> Clock:
        """What a checkpoint has to remember so that a resumed run goes on writing the same lines."""
        seconds = self._seconds_before + time.perf_counter() - self._started
        losses = [list(pair) for pair in self._judge.losses]
        return Clock(seconds, self._sums, self._count, self._unusable, self._judge.in_a_row, finished, losses)

    @contextlib.contextmanager
    def paused(self, phase: str) -> Iterator[None]:
        """Time spent inside counts towards no rate, and to the watchdog it is a `phase` of its own."""
        began = time.perf_counter()
        with self._watchdog.during(phase):
            yield
        self._window_started += time.perf_counter() - began

    def close(self) -> None:
        self._bar.close()

    def _look_at(self, step: int, values: dict[str, float]) -> None:
        try:
            self._judge.look_at(step, values)
        except Exception:
            self._log.write(step, values)
            raise

    def _write(self, step: int, rows: int) -> None:
        now = time.perf_counter()
        per_second = self._timed_steps / max(now - self._window_started, 1e-9)
        means: dict[str, Any] = {name: total / max(self._count, 1) for name, total in self._sums.items()}
        # Steps whose metrics are not all finite weigh in no mean but this one.
        means["skipped"] = (self._sums.get("skipped", 0.0) + self._unusable) / max(self._count + self._unusable, 1)
        rates = {
            "steps_per_second": per_second,
            "examples_per_second": per_second * rows,
            "tokens_per_second": per_second * rows * self._cost.tokens,
            "model_flops_per_second": per_second * rows * self._cost.flops,
            "eta_seconds": (self._config.num_steps - step) / per_second,
            "seconds": self._seconds_before + now - self._started,
        }
        self._log.write(step, {**means, **rates, **self._counts(step)})
        self._bar.set_postfix(loss=f"{means.get('loss', math.nan):.4g}", refresh=False)
        self._sums, self._count, self._unusable = {}, 0, 0
        self._window_started, self._timed_steps = now, 0
