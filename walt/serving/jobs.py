"""Requests, one at a time, in a thread of their own; each can be watched and stopped between steps of sampling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from walt.generation.watching import Moment, watching


class Stopped(Exception):
    """A job was stopped before its end."""


class Progress(NamedTuple):
    """Where a job is.

    Attributes:
      part: which run of the sampler, from 1; some tasks have several.
      step, steps: of that run.
      preview: what the model guesses by now.
    """

    part: int
    step: int
    steps: int
    preview: UInt8[np.ndarray, "t h w 3"]


class Done(NamedTuple):
    """A job has come to its end, with this."""

    result: Any


class Waiting(NamedTuple):
    """A job has not begun: so many are before it."""

    before: int


class Busy(RuntimeError):
    """Too many jobs wait."""


class Jobs:
    """Runs jobs in the order in which they come. Who has started one may stop it, and nobody else."""

    def __init__(self, most: int):
        """At most so many may wait."""
        self._most = most
        self._worker = ThreadPoolExecutor(1, "sampling")
        self._stops: dict[str, set[threading.Event]] = {}
        self._changing = threading.Lock()

    def run(self, owner: str, work: Callable[[], Any], every: int) -> Iterator[Waiting | Progress | Done]:
        """Yields where `work` is after every so many steps of its sampling, and at last what it has made.

        Raises what `work` raises, `Stopped` where `stop` has been called, and `Busy` at once. A caller that goes away stops it too.
        """
        stop, news = threading.Event(), queue.SimpleQueue[Any]()
        with self._changing:
            before = sum(map(len, self._stops.values()))
            if before > self._most:
                raise Busy(f"{self._most} requests are waiting already; try again later")
            self._stops.setdefault(owner, set()).add(stop)
        try:
            begun = self._worker.submit(_work, work, every, stop, news)
            if before:
                yield Waiting(before)
            while True:
                item = news.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Done):
                    return
        finally:
            stop.set()
            begun.cancel()
            with self._changing:
                self._stops[owner].discard(stop)
                if not self._stops[owner]:
                    del self._stops[owner]

    def stop(self, owner: str | None = None) -> bool:
        """Stops all jobs of an owner, or of everybody, the one that runs at its next step; whether there was any."""
        with self._changing:
            stops = [
                stop
                for name, owned in self._stops.items()
                if owner in (None, name)
                for stop in owned
                if not stop.is_set()
            ]
        for stop in stops:
            stop.set()
        return bool(stops)


def _work(work: Callable[[], Any], every: int, stop: threading.Event, news: queue.SimpleQueue[Any]) -> None:
    part = 0

    def see(moment: Moment) -> None:
        nonlocal part
        if stop.is_set():
            raise Stopped("stopped")
        part += moment.step <= every
        if moment.step < moment.steps:  # what comes after the last step is the result
            news.put(Progress(part, moment.step, moment.steps, moment.preview()[0]))

    try:
        if stop.is_set():
            raise Stopped("stopped")
        with watching(see, every):
            news.put(Done(work()))
    except BaseException as error:
        news.put(error)
