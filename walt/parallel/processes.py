"""Several processes as one job: they find each other, agree on where to stop, and when one fails, all of them end.

A TPU pod runs one process per host, all with the same command. What divides the work among them is the mesh; this file only joins them,
watches over them and says what became of those that are gone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from walt.children import kill_children
from walt.config import ConfigError

FAILURE = "walt/failure"  # the reason of the first process that failed, in the coordinator's store of keys and values
ENDED = "walt/ended"  # the exit status that all processes end with at once, and who says so
NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # where JAX's preemption service looks for a time of death; it knows no other way in but SIGTERM
LONG_AGO = "1970-01-01T00:00:00+00:00"  # now, by whatever clock: JAX waits for a time that lies a quarter of an hour ahead or more
END = "walt/end"
POLL_SECONDS = 1.0
LONGEST_WAIT = 7 * 24 * 3600  # for a process that still works; one that is gone is noticed by its heartbeats
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class _Job:
    """Which process of how many this is, and the way to the coordinator."""

    index: int
    count: int
    client: Any


_job: _Job | None = None  # None unless this process has joined others


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    initialization_timeout: int = 300,
    heartbeat_timeout: int = 100,
) -> None:
    """Joins the other processes of this job; on a single machine does nothing. Call it before anything asks for devices.

    A job has several processes when `coordinator_address` says so, when Slurm or Open MPI started it as such, or on a TPU pod (Cloud TPU
    VMs, GKE), where JAX finds the other hosts by itself. Nothing but the environment and the list of PCI devices is asked on other machines.
    Processes on CPUs speak Gloo, which is JAX's default.

    Args:
      coordinator_address: HOST:PORT of process 0; by default JAX_COORDINATOR_ADDRESS.
      num_processes: by default JAX_NUM_PROCESSES, or what the cluster says; 1 keeps this process by itself, wherever it runs.
      process_id: from 0; by default JAX_PROCESS_ID, or what the cluster says.
      initialization_timeout: seconds to wait for the others; then the process ends with a sentence that says who is missing.
      heartbeat_timeout: seconds without a sign of life after which a process counts as gone, and all others end.

    Raises:
      ConfigError: these values do not make a job.
    """
    if jax.distributed.is_initialized():
        return
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    count = _number("num_processes", num_processes)
    index = _number("process_id", process_id)
    cluster = _cluster()
    _check(address, count, index, cluster, initialization_timeout, heartbeat_timeout)
    if count == 1 or (address is None and cluster is None):
        return
    name = "this process" if index is None else f"process {index}"
    with _deadline(initialization_timeout, f"{name} of {count or 'the job'}", address):
        try:
            jax.distributed.initialize(
                address,
                count,
                index,
                # Later than our own deadline: where JAX's passes, it aborts with a stack trace.
                initialization_timeout=initialization_timeout + 60,
                heartbeat_timeout_seconds=heartbeat_timeout,
            )
        except (RuntimeError, ValueError) as error:
            if address is None and cluster == "tpu" and not _names_workers():
                logging.info("no other hosts were found: %s", error)
                return
            raise ConfigError(
                f"{name} could not join the others{f' at {address}' if address else ''}: {error}"
            ) from error
    _give_back_signals()
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
    if jax.process_count() > 1:
        _watch()


def exchanged(mine: bytes) -> list[bytes]:
    """What every process of the job gave, in their order; all of them must call this, and all get the same."""
    if jax.process_count() == 1:
        return [mine]
    sizes = np.asarray(multihost_utils.process_allgather(np.array([len(mine)], np.int32))).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes)]


def leave(reason: str, status: int = 1) -> None:
    """Ends this process with `status` at once, and with it all others of the job, which print `reason`. Returns if there is no job.

    What is left undone is lost, so it is for a process that has failed. Without it, the others would wait for this one in the next
    collective, and this one for them at its end.
    """
    if _job is None:
        return
    first = report(reason)
    if first != _line(_job, reason):
        print(first, file=sys.stderr)
    _exit(status)


def report(reason: str) -> str:
    """Tells the other processes that this one has failed, which ends them; returns the line of the first one that did.

    This process has some seconds to end by itself. Where another one has ended the job, what failed here failed for that, and this one ends as told.
    """
    if _job is None:
        return reason
    _end_if_told(_job)
    with contextlib.suppress(Exception):  # another one was first, or the coordinator is gone
        _job.client.key_value_set(FAILURE, _line(_job, reason))
    return _said(_job, FAILURE) or _line(_job, reason)


def is_job() -> bool:
    """Whether this process has joined others."""
    return _job is not None


def request_stop() -> None:
    """All processes shall agree on a step to stop at, which `reached_stop` tells."""
    assert _job is not None
    with contextlib.suppress(Exception):  # another one was first, or the coordinator is gone
        _job.client.key_value_set(NOTICE, LONG_AGO)


def reached_stop(step: int) -> bool:
    """Whether `step` is the one that the processes agreed to stop at. All of them must ask at every step, from the same one on.

    Costs no communication, until somebody has requested it: then a call waits for the latest step that a process has asked about.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def end_all(reason: str, status: int) -> NoReturn:
    """Ends this process, and all others of its job, with `status` at once."""
    if _job is None:
        _say(reason)
    else:
        line = f"process {_job.index} of {_job.count}: {reason}"
        with contextlib.suppress(Exception):  # another one was first, or the coordinator is gone
            _job.client.key_value_set(ENDED, f"{status} {line}")
        _say(line)
    _exit(status)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Reports what is raised within before anything outside cleans up: that may wait for processes that wait for this one."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        report(_reason(error))
        raise


def _check(
    address: str | None, count: int | None, index: int | None, cluster: str | None, joining: int, heartbeat: int
) -> None:
    for name, seconds in (("initialization_timeout", joining), ("heartbeat_timeout", heartbeat)):
        if seconds < 1:
            raise ConfigError(f"{name} must be at least 1 second, got {seconds}")
    if count is not None and count < 1:
        raise ConfigError(f"num_processes must be at least 1, got {count}")
    if index is not None and (index < 0 or (count is not None and index >= count)):
        below = "" if count is None else f" and less than num_processes, {count}"
        raise ConfigError(f"process_id must be 0 or more{below}, got {index}")
    if count == 1:
        return
    if address is None:
        given = [name for name, value in (("num_processes", count), ("process_id", index)) if value is not None]
        if given and cluster is None:
            raise ConfigError(f"{' and '.join(given)} given, but no coordinator_address: say HOST:PORT of process 0")
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"coordinator_address must be HOST:PORT of process 0, such as 10.0.0.2:8476, got {address!r}")
    for name, value in (("num_processes", count), ("process_id", index)):
        if value is None and cluster is None:
            raise ConfigError(
                f"coordinator_address is {address}, so {name} must be given too, as a flag or as JAX_{name.upper()}"
            )


def _number(name: str, given: int | None) -> int | None:
    """What was given, or else the environment variable."""
    variable = f"JAX_{name.upper()}"
    value = os.environ.get(variable, "")
    if given is not None or not value:
        return given
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {variable} must be a number, got {value!r}")
    return int(value)


def _cluster() -> str | None:
    """What JAX can find the other processes by, as far as the environment and the hardware tell; None for a single process."""
    known = os.environ
    if "OMPI_MCA_orte_hnp_uri" in known and _is_several(known.get("OMPI_COMM_WORLD_SIZE")):
        return "Open MPI"
    # The step's list of nodes is there under srun alone: a shell of an allocation is a single process.
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in known for name in slurm) and _is_several(known.get("SLURM_NTASKS")):
        return "Slurm"
    if "tpu" not in (known.get("JAX_PLATFORMS") or "tpu"):
        return None
    if _names_workers():
        return "tpu"
    # A list of one worker is GKE's way to say that there is no other. On a TPU VM only its metadata server knows, which JAX asks.
    return "tpu" if _workers() is None and _has_google_device() else None


def _is_several(count: str | None) -> bool:
    return count is not None and count.isdecimal() and int(count) > 1


def _workers() -> str | None:
    return os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or None


def _names_workers() -> bool:
    """Whether the environment lists several TPU hosts or slices."""
    return "," in (_workers() or "") or _is_several(os.environ.get("MEGASCALE_NUM_SLICES"))


def _has_google_device(folder: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether there may be TPU chips: machines outside of Google Cloud have no device of this PCI vendor."""
    for vendor in folder.glob("*/vendor"):
        with contextlib.suppress(OSError):
            if vendor.read_text().strip() == "0x1ae0":
                return True
    return False


@contextlib.contextmanager
def _deadline(seconds: float, who: str, address: str | None) -> Iterator[None]:
    """Ends the process with one sentence when what is within takes longer: JAX waits in a call that cannot be interrupted."""

    def give_up() -> None:
        where = f"at {address}" if address else "that the cluster names"
        _say(
            f"{who} waited {seconds:g} seconds for the others: either nothing answers {where} as process 0, or not all processes "
            "of the job have started"
        )
        _exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _watch() -> None:
    """From here on this process ends when another one fails, tells the others when it does, and does not end before them."""
    from orbax.checkpoint import multihost  # JAX itself has no public name for its client

    global _job
    _job = job = _Job(jax.process_index(), jax.process_count(), multihost.get_jax_distributed_client())
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            _end_if_told(job)
            failure = _said(job, FAILURE)
            if failure is None:
                continue
            if failure.startswith(_line(job, "")):  # our own: the main thread prints it, and ends unless it hangs
                time.sleep(GRACE_SECONDS)
            else:
                _say(failure)
            _exit(1)

    def end() -> None:
        with contextlib.suppress(Exception):  # whoever is missing has failed, which the watcher or JAX makes known
            job.client.wait_at_barrier(END, LONGEST_WAIT * 1000)
        ended.set()

    hook = sys.excepthook

    def on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        hook(kind, error, trace)
        leave(_reason(error))

    threading.Thread(target=watch, name="watch over the job", daemon=True).start()
    sys.excepthook = on_exception
    atexit.register(end)


def _give_back_signals() -> None:
    """SIGTERM does again what Python was told that it shall do: JAX's preemption service has taken it for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _said(job: _Job, key: str) -> str | None:
    """What the first process that had something to say said; None if there is none, or if nobody can be asked."""
    try:
        return job.client.key_value_try_get(key)
    except Exception:  # JAX's error for "not found" has no public name
        return None


def _end_if_told(job: _Job) -> None:
    """Ends this process if one of the job has ended all of them, see `end_all`."""
    if (told := _said(job, ENDED)) is not None:
        status, _, line = told.partition(" ")
        _say(line)
        _exit(int(status))


def _line(job: _Job, reason: str) -> str:
    return f"process {job.index} of {job.count} failed: {reason}"


def _reason(error: BaseException) -> str:
    return str(error) if type(error).__module__.partition(".")[0] == "walt" else f"{type(error).__name__}: {error}"


def _say(line: str) -> None:
    print(f"walt: {line}", file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    """Ends the process without the usual end, at which processes wait for each other."""
    if _job is not None and _job.index == 0:
        time.sleep(3 * POLL_SECONDS)  # the others still have to read why, and this process is where they do
    kill_children()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
