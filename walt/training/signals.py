"""Stopping when asked to: Ctrl-C or a SIGTERM ends the run after the current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from typing import Any

import numpy as np
from jax.experimental import multihost_utils


class Interrupted(SystemExit):
    """The run was asked to stop and has saved where it was. Ends the program with the usual status, 128 + the
    signal.
    """

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)


class StopSignal:
    """Remembers the first SIGINT or SIGTERM; a second one is handled as always (Ctrl-C twice stops at once).

    Python runs handlers between bytecodes: a signal during a compilation is noticed when it ends.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {
                number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()

    def agreed(self, processes: int) -> bool:
        """Whether any host was asked to stop. With several hosts all of them must call this at the same step."""
        if processes == 1:
            return self.received is not None
        return bool(multihost_utils.process_allgather(np.asarray(self.received is not None)).any())

    def _remember(self, number: int, frame: Any) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
