"""Where a figure was measured: versions, processor, memory, commit and date, as plain JSON values."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("walt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


def describe_environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """What this process runs on. `None` stands where something cannot be found out; nothing here raises."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor_model(),
        "cores": available_cores(),
        "memory_gb": total_memory_gb(),
        "packages": {name: version for name in packages if (version := package_version(name)) is not None},
    }


def package_version(name: str) -> str | None:
    """Version of an installed distribution, `None` if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Model name of the first processor, where the system tells."""
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name") and ":" in line:
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or None


def available_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory_gb() -> float | None:
    """Physical memory of the machine in GB (1e9 bytes)."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 2)
    except (ValueError, OSError):
        return None


def peak_memory_gb() -> float:
    """Largest resident memory so far, in GB (1e9 bytes): that of this process plus that of its largest finished child.

    The two peaks need not have coincided, so that the sum is an upper bound for one child at a time; several children that ran side by side
    can together have held more. Children count only once they have been waited for.
    """
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return round(sum(peaks) * unit / 1e9, 3)


def git_commit(inside: Path = Path(__file__).parent) -> str | None:
    """Commit of the checkout that holds this file, with "-dirty" when tracked files are changed; `None` for an installed package."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(inside), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed below somebody else's repository must not claim that repository's commit.
    if not git("ls-files", "--error-unmatch", "."):
        return None
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + "-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
