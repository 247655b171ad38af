"""One run at a time in a work directory, and one work directory for all processes of a run."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator

import jax
from etils import epath
from jax.experimental import multihost_utils

from walt.config import ConfigError

LOCK = ".lock"
PATIENCE_SECONDS = 10.0  # for a run that was told to end, and for file systems that show files of others late
POLL_SECONDS = 0.2


@contextlib.contextmanager
def claimed(workdir: epath.PathLike) -> Iterator[None]:
    """Within, no other run trains in this work directory. `ConfigError` if one does, or if not all processes of this job see it.

    It is a lock of the file system, which ends with the process, however that ends. A bucket has none: there nothing keeps a second run out.
    A work directory to which nothing was written is gone again afterwards.
    """
    file = epath.Path(workdir) / LOCK
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(_marked(file) if "://" in str(file) else _locked(file))
        multihost_utils.sync_global_devices("work directory claimed")
        if not _within(PATIENCE_SECONDS, file.exists):
            raise ConfigError(
                f"process {jax.process_index()} does not see what process 0 wrote to {workdir}: the workdir of a job must be one folder that "
                "all of its processes share"
            )
        yield


@contextlib.contextmanager
def _marked(file: epath.Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    yield


@contextlib.contextmanager
def _locked(file: epath.Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if not _within(PATIENCE_SECONDS, lambda: _lock(file, stack)):
            raise ConfigError(
                f"another run is training in {file.parent} (its heartbeat.0.json says where): wait for its end, or choose another workdir"
            )
        try:
            yield
        finally:
            if [entry.name for entry in file.parent.iterdir()] == [LOCK]:
                file.unlink()
                file.parent.rmdir()


def _lock(file: epath.Path, stack: contextlib.ExitStack) -> bool:
    """Whether no other process holds the lock, which this one then does until it leaves the stack."""
    with contextlib.ExitStack() as attempt:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        attempt.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            logging.warning("%s cannot be locked (%s): nothing keeps a second run out of this folder", file, error)
        # Who held it before may have removed the file: then this is a lock on nothing.
        if os.fstat(descriptor).st_nlink == 0:
            return False
        stack.push(attempt.pop_all())
    return True


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true in that time."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return met
