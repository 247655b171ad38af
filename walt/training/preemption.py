"""Ending when told to: a SIGTERM, which is how schedulers and TPU VMs announce a preemption, or Ctrl-C.

Python runs signal handlers between bytecodes of the main thread, and that thread may spend minutes in a compilation. So a thread of its own
reads the signals (`signal.set_wakeup_fd`) and decides:

* nothing would be lost (before the first step, while what is saved is evaluated): all processes end at once, with status 75;
* otherwise all of them agree on a step, which the loop saves, and end with status 75;
* at a second SIGTERM this process ends at once; the previous checkpoint is whole.

Ctrl-C is for people: it does the same, with status 130, except that nothing is ended from outside of the main thread.

Google's machines also say in their metadata that they are about to be taken away, which another thread reads (`notice.py`): it counts as a
first SIGTERM, after which the real one, when the machine shuts down, ends nothing at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from walt.children import kill_children
from walt.training import notice

PREEMPTED = os.EX_TEMPFAIL
"""The exit status, 75, of a run that was told to end and goes on when it is started again, which the scripts of launch/ do."""

POLL_SECONDS = 0.05


class Interrupted(SystemExit):
    """The run was asked to stop and has saved where it was."""

    def __init__(self, signal_number: int | None):
        super().__init__(128 + signal.SIGINT if signal_number == signal.SIGINT else PREEMPTED)


class StopSignal:
    """Reads SIGTERM and SIGINT while it is entered, which only the main thread can do; elsewhere nothing is ever received.

    Args:
      ends: whether this process may be ended where nothing would be lost; without it, it only remembers, so that a caller goes on.

    Attributes:
      received: the first signal.
      may_end: whether nothing would be lost now.
    """

    def __init__(self, ends: bool):
        self.received: int | None = None
        self.may_end: Callable[[], bool] = lambda: True
        self._ends = ends
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        handlers = {signal.SIGTERM: _do_nothing, signal.SIGINT: self._interrupt}
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        self._thread = threading.Thread(target=self._watch, name="reader of signals", daemon=True)
        self._thread.start()
        threading.Thread(
            target=notice.wait, args=(self._told_by_the_machine,), name="preemption notice", daemon=True
        ).start()
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_writer)
        os.close(self._writer)  # the thread reads that nothing more comes
        self._thread.join()
        os.close(self._reader)
        self._previous = {}

    @contextlib.contextmanager
    def when(self, may_end: Callable[[], bool]) -> Iterator[None]:
        """Within, `may_end` says whether nothing would be lost."""
        before, self.may_end = self.may_end, may_end
        try:
            yield
        finally:
            self.may_end = before

    def agreed(self, step: int) -> bool:
        """Whether to stop at `step`. The processes of a job must call this at every step; all of them get the same answer."""
        from walt.parallel.processes import is_job, reached_stop  # imports jax, before which signals are read already

        return reached_stop(step) if is_job() else self.received is not None

    def wait(self, seconds: float) -> bool:
        """Whether a signal has come, if need be within some seconds."""
        for _ in range(round(seconds / POLL_SECONDS)):
            if self.received is not None:
                break
            time.sleep(POLL_SECONDS)
        return self.received is not None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C, in the main thread: remembered where there is something to save, else, and at the second one, as always."""
        if self.received is not None or (self._ends and self.may_end()):
            raise KeyboardInterrupt
        self.received = number
        _say("stopping after this step, which is saved first; Ctrl-C once more ends at once, without saving")
        self._tell_others()

    def _watch(self) -> None:
        terminations = 0
        while numbers := os.read(self._reader, 64):
            for _ in range(numbers.count(signal.SIGTERM)):
                terminations += 1
                if terminations > 1:
                    kill_children()
                    os._exit(PREEMPTED)
                self._told()

    def _told_by_the_machine(self) -> None:
        if self._previous:
            self._told()

    def _told(self) -> None:
        if self.received is None:
            _say("told to end: what is not saved is saved first")
        self.received = self.received or signal.SIGTERM
        threading.Thread(target=self._end, name="end of the run", daemon=True).start()

    def _end(self) -> None:
        """Waits until the loop has ended the run, or nothing would be lost by ending it here."""
        self._tell_others()
        while self._ends and self._previous:
            if self.may_end():
                from walt.parallel.processes import end_all

                end_all(
                    "told to end while there was nothing to save that is not saved; the same command goes on", PREEMPTED
                )
            time.sleep(POLL_SECONDS)

    def _tell_others(self) -> None:
        from walt.parallel.processes import is_job, request_stop

        if is_job():
            request_stop()


def until_watched() -> None:
    """From here on SIGTERM ends this process with status 75, until it reads signals: the first thing that programs which train do, for what
    they import takes seconds.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(PREEMPTED))


_active: StopSignal | None = None


@contextlib.contextmanager
def watching(ends: bool = True) -> Iterator[StopSignal]:
    """Reads signals within; inside of another such block, that one goes on doing so.

    Programs that train enter it before anything else. Without them, a run reads signals by itself and `ends` nothing.
    """
    global _active
    if _active is not None:
        yield _active
        return
    with StopSignal(ends) as _active:
        try:
            yield _active
        finally:
            _active = None


def _say(text: str) -> None:
    """A line of its own beside a progress bar; in a handler of signals, where a file that is being written must not be written to."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nwalt: {text}\n".encode())


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """A signal with a handler in Python is written to the pipe by that of the interpreter."""
