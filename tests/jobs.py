"""Commands run as jobs of several processes on this machine, over loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ended:
    """What became of a process: its exit status, its output and errors, and when it ended, in seconds from the first end."""

    status: int
    output: str
    errors: str
    seconds: float


def start(
    command: Sequence[str],
    processes: int = 2,
    devices: int = 1,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] = {},
    own: Mapping[int, Sequence[str]] = {},
) -> list[subprocess.Popen]:
    """Starts `python COMMAND` in so many processes of so many CPU devices; `own` are further arguments of one of them.

    One process is none of a job; several are told so by environment variables, or by flags if there are any.
    """
    address = f"localhost:{free_port()}"
    xla = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    shared = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    shared["XLA_FLAGS"] = " ".join([*xla, f"--xla_force_host_platform_device_count={devices}"])
    started = []
    for index in range(processes):
        place = {"coordinator_address": address, "num_processes": str(processes), "process_id": str(index)}
        variables = {f"JAX_{name.upper()}": value for name, value in place.items()}
        arguments = [f"--{name}={value}" for name, value in place.items()] if flags else []
        started.append(
            subprocess.Popen(
                [sys.executable, *command, *(arguments if processes > 1 else ()), *flags, *own.get(index, ())],
                env=shared | (variables if processes > 1 and not flags else {}) | dict(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def ended(started: Sequence[subprocess.Popen], timeout: float = 120) -> list[Ended]:
    """Waits for all of them; those that have not ended in time are killed, which fails the test that looks at their status."""

    def wait(process: subprocess.Popen) -> tuple[str, str, float]:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        return output, errors, time.monotonic()

    with ThreadPoolExecutor(len(started)) as pool:
        found = list(pool.map(wait, started))
    first = min(end for _, _, end in found)
    return [Ended(process.returncode, *texts, end - first) for process, (*texts, end) in zip(started, found)]


def run(command: Sequence[str], processes: int = 2, timeout: float = 120, **options) -> list[Ended]:
    """A job that must succeed."""
    found = ended(start(command, processes, **options), timeout)
    for process in found:
        assert process.status == 0, process.errors
    return found


def is_gone(pid: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_gone(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
