"""A thread that watches the run: it says where a run hangs, ends one that hangs for good, and writes the heartbeat.

    heartbeat.0.json    of process 0: {"time": now, "step": 120, "step_time": when it was done, "phase": "training", "pid": …, "host": …}

A heartbeat whose `time` is old is that of a process that is gone; one whose `step_time` is old is that of a process that hangs. At its end a run
writes the phase "finished", or "stopped" if it was told to end or failed.

The thread that watches touches no storage, which may be what hangs: heartbeats and stacks are written by others, and waited for only so long.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import jax
from etils import epath

from walt import jsonlines
from walt.parallel.processes import end_all
from walt.training.config import WatchdogConfig

HEARTBEAT, STACKS = "heartbeat.{process}.json", "stacks.{process}.txt"
POLL_SECONDS = 0.25
TRAINING, LOADING, FINISHED, STOPPED = "training", "waiting for data", "finished", "stopped"
MANY = 5  # steps that make a median
WRITE_SECONDS = 10.0  # how long is waited for a file


class Watchdog:
    """Use as a context manager around a run; `beat` at every step. The heartbeat begins with `start_heartbeat`.

    Args:
      fail: ends the process, and its job, with a reason.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: WatchdogConfig,
        step: int,
        fail: Callable[[str], object] = lambda reason: end_all(reason, 1),
    ):
        self._config, self._fail = config, fail
        self._heartbeat, self._stacks = (
            epath.Path(workdir) / name.format(process=jax.process_index()) for name in (HEARTBEAT, STACKS)
        )
        self._step, self._metrics = step, dict[str, float]()
        self._step_time = time.time()
        self._durations: deque[float] = deque(maxlen=100)
        self._phase, self._phase_began, self._beat = "starting", time.monotonic(), time.monotonic()
        self._undisturbed = False  # whether nothing but training happened since the last beat
        self._reported = False
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Watchdog:
        self._start(self._watch, "watchdog")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._phase = FINISHED if kind is None else STOPPED
        self._ended.set()
        for thread in self._threads:
            thread.join(WRITE_SECONDS)

    def start_heartbeat(self) -> None:
        """From here on the heartbeat is written."""
        self._start(self._write_heartbeats, "heartbeat")

    def _start(self, target: Callable[[], None], name: str) -> None:
        self._threads.append(threading.Thread(target=target, name=name, daemon=True))
        self._threads[-1].start()

    def beat(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done, and these are its metrics."""
        now = time.monotonic()
        if self._undisturbed:
            self._durations.append(now - self._beat)
        self._step, self._metrics, self._step_time = step, dict(metrics), time.time()
        self._beat, self._undisturbed, self._reported = now, True, False

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Within, something else than training happens, for which there is no usual time."""
        before = self._phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)
            if phase != LOADING:
                self._beat, self._undisturbed = time.monotonic(), False

    def training(self) -> None:
        """From here on steps follow each other."""
        self._enter(TRAINING)
        self._beat = time.monotonic()

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_began = phase, time.monotonic()

    def _watch(self) -> None:
        before, failed = time.monotonic(), False
        while not self._ended.wait(POLL_SECONDS):
            now = time.monotonic()
            if now - before > 10 * POLL_SECONDS:  # this process itself was stopped, or got no time
                self._beat, self._phase_began = self._beat + now - before, self._phase_began + now - before
            try:
                self._look(now)
            except Exception as error:  # whatever it is, nobody else watches
                if not failed:
                    logging.warning("the watchdog goes on, after %s: %s", type(error).__name__, error)
                failed = True
            before = time.monotonic()

    def _look(self, now: float) -> None:
        phase, config = self._phase, self._config
        waited = now - (self._beat if phase in (TRAINING, LOADING) else self._phase_began)
        if config.fail_seconds is not None and waited > config.fail_seconds:
            reason = f"nothing has happened for {waited:.0f} seconds after step {self._step} ({phase}), so the run has failed"
            self._report(reason)
            self._fail(f"{reason}; where it hangs stands in {self._stacks}")
            self._ended.set()
        elif phase in (TRAINING, LOADING) and not self._reported and waited > self._slow():
            self._reported = True
            usual = statistics.median(self._durations)
            what = "the loader has given no batch" if phase == LOADING else "no step was done"
            self._report(f"{what} for {waited:.1f} seconds after step {self._step}, and a step takes {usual:.2g}")

    def _slow(self) -> float:
        if self._config.slow_factor is None or len(self._durations) < MANY:
            return math.inf
        return max(self._config.slow_seconds, self._config.slow_factor * statistics.median(self._durations))

    def _report(self, reason: str) -> None:
        """Into the log, and into a file that stays."""
        metrics = json.dumps(self._metrics)
        text = f"{time.strftime('%FT%T')} {reason}\nlast metrics: {metrics}\n{_stacks()}"
        print(f"walt: {text}", file=sys.stderr, flush=True)
        writing = threading.Thread(target=self._write_stacks, args=(text,), name="stacks", daemon=True)
        writing.start()
        writing.join(WRITE_SECONDS)

    def _write_stacks(self, text: str) -> None:
        try:
            jsonlines.append_text(self._stacks, text + "\n")
        except Exception as error:  # that of a bucket need be no OSError
            logging.warning("%s could not be written: %s", self._stacks, error)

    def _write_heartbeats(self) -> None:
        ended = False
        while not ended:
            self._write_heartbeat()
            ended = self._ended.wait(self._config.heartbeat_seconds)
        self._write_heartbeat()  # how it ended

    def _write_heartbeat(self) -> None:
        entry = {
            "time": time.time(),
            "step": self._step,
            "step_time": self._step_time,
            "phase": self._phase,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        partial = self._heartbeat.with_name(f"{self._heartbeat.name}.partial")
        try:
            partial.write_text(json.dumps(entry) + "\n")
            partial.replace(self._heartbeat)
        except Exception as error:
            # A full disk, or a bucket that does not answer: the training may still be able to save itself.
            logging.warning("%s could not be written: %s", self._heartbeat, error)


def _stacks() -> str:
    """Where every thread of this process is in its Python code."""
    with tempfile.TemporaryFile("w+") as file:  # faulthandler writes to nothing but files of the system
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
