"""Requests, one at a time, each in a thread of its own that can be watched and stopped between steps of sampling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
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


class Jobs:
    """Runs jobs; who has started one may stop it, and nobody else."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()
        self._stops: dict[str, set[threading.Event]] = {}

    def run(self, owner: str, work: Callable[[], Any], every: int) -> Iterator[Progress | Done]:
        """Yields where `work` is after every so many steps of its sampling, and at last what it has made.

        Raises what `work` raises, and `Stopped` where `stop` has been called. A caller that goes away stops it too.
        """
        stop, news = threading.Event(), queue.SimpleQueue[Any]()
        self._stops.setdefault(owner, set()).add(stop)
        threading.Thread(target=self._work, args=(work, every, stop, news), daemon=True).start()
        try:
            while not isinstance(item := news.get(), Done):
                if isinstance(item, BaseException):
                    raise item
                yield item
            yield item
        finally:
            stop.set()
            self._stops[owner].discard(stop)
            if not self._stops[owner]:
                del self._stops[owner]

    def stop(self, owner: str) -> bool:
        """Stops all jobs of an owner, the one that runs at its next step; whether there was any."""
        stops = list(self._stops.get(owner, ()))
        for stop in stops:
            stop.set()
        return bool(stops)

    def _work(self, work: Callable[[], Any], every: int, stop: threading.Event, news: queue.SimpleQueue[Any]) -> None:
        part = 0

        def see(moment: Moment) -> None:
            nonlocal part
            if stop.is_set():
                raise Stopped("stopped")
            part += moment.step <= every
            if moment.step < moment.steps:  # what comes after the last step is the result
                news.put(Progress(part, moment.step, moment.steps, moment.preview()[0]))

        try:
            with self._one_at_a_time, watching(see, every):
                if stop.is_set():
                    raise Stopped("stopped")
                news.put(Done(work()))
        except BaseException as error:
            news.put(error)
