"""Watching a video come into being: a function that is called between steps of sampling, and may put an end to it.

    with watching(lambda now: print(f"{now.step} of {now.steps}"), every=5):
        pipeline.generate("a game of Freeway")

What is watched is the thread's (or task's) own calls of any pipeline. A video is the same, to the bit, watched or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Moment(NamedTuple):
    """Where sampling is.

    Attributes:
      step, steps: how many are done, and of how many.
      preview: makes the videos of the batch as the model guesses them by now, in its own size, behind them others that fill the
        batch up; takes a run of the decoder.
    """

    step: int
    steps: int
    preview: Callable[[], UInt8[np.ndarray, "b t h w 3"]]


class Watcher(NamedTuple):
    """What is called, and after how many steps each time."""

    see: Callable[[Moment], None]
    every: int


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watching(see: Callable[[Moment], None], every: int = 5) -> Iterator[None]:
    """Has `see` called every so many steps of all sampling within the block. What it raises ends the sampling and comes out of the call."""
    if every < 1:
        raise ValueError(f"every must be at least 1 step, got {every}")
    token = _watcher.set(Watcher(see, every))
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher | None:
    """Who watches; None for nobody."""
    return _watcher.get()
