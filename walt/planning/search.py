"""Many plans side by side, each compiled in a process of its own, and their ranking."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from walt.planning.plan import Plan

Result = Literal["fits", "does not fit", "failed", "skipped"]
Changes = tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate.

    Attributes:
      changes: flags that make it of the config.
      why: in words, where there is no estimate.
    """

    changes: Changes
    result: Result
    why: str | None = None
    peak_bytes: float | None = None
    estimated_step_seconds: float | None = None
    estimated_mfu: float | None = None


def outcome_of(changes: Changes, plan: Plan) -> Outcome:
    """The line of a plan in a ranking."""
    why = None
    if not plan.fits:
        why = f"{-plan.headroom_bytes / 1e9:.1f} GB too much"
    elif plan.unmodelled:
        why = f"kernels without an estimate: {', '.join(plan.unmodelled)}"
    step, mfu = plan.estimated_step_seconds, plan.estimated_mfu
    return Outcome(changes, "fits" if plan.fits else "does not fit", why, plan.peak_bytes, step, mfu)


def ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The fastest first; then what fits without an estimate, what does not fit (the least missing first), what failed and what was skipped."""

    def place(each: Outcome) -> tuple[float, ...]:
        step = math.inf if each.estimated_step_seconds is None else each.estimated_step_seconds
        return list(COUNTED).index(each.result), step, each.peak_bytes or 0.0

    return sorted(outcomes, key=place)


def describe_ranking(outcomes: Sequence[Outcome]) -> list[str]:
    """The ranking for people: lines to print."""
    counts = [f"{sum(each.result == result for each in outcomes)} {words}" for result, words in COUNTED.items()]
    lines = [f"ranking of {len(outcomes)} candidates: {', '.join(counts)}"]
    for number, each in enumerate(ranked(outcomes), 1):
        words: str = each.result
        if each.estimated_step_seconds is not None:
            words = f"{each.estimated_step_seconds:.3g} s, MFU {each.estimated_mfu or 0:.3f}, {(each.peak_bytes or 0) / 1e9:.1f} GB"
        why = f" ({each.why})" if each.why else ""
        lines.append(f"  {number:3d}. {words:32s} {' '.join(each.changes)}{why}")
    return lines


COUNTED: dict[Result, str] = {
    "fits": "fit",
    "does not fit": "do not fit",
    "failed": "failed",
    "skipped": "do not divide and were not compiled",
}


def compile_all(
    compile_one: Callable[..., Plan], candidates: Sequence[tuple[Changes, Any]], jobs: int | None = None
) -> Iterator[tuple[Outcome, Plan | None]]:
    """What becomes of every candidate (its flags, and what `compile_one` takes, both picklable), as it becomes known.

    The first is compiled alone, for the memory that it takes: `jobs` are by default as many as fit into what is free.
    """
    if not candidates:
        return
    first, *others = candidates
    outcome, plan, peak = _compile_apart(compile_one, *first)
    yield outcome, plan
    with ThreadPoolExecutor(jobs or jobs_for(peak)) as pool:
        running = [pool.submit(_compile_apart, compile_one, *each) for each in others]
        for done in as_completed(running):
            outcome, plan, _ = done.result()
            yield outcome, plan


def jobs_for(peak: float, available: float | None = None) -> int:
    """How many compilations of `peak` bytes each run side by side: as many as free memory and cores take, at least one."""
    available = free_memory() if available is None else available
    return max(1, min(os.cpu_count() or 1, int(available / peak) if peak else 1))


def free_memory() -> float:
    """Bytes that programs can still take on this machine."""
    file = Path("/proc/meminfo")
    if file.exists():  # Linux, which counts what its caches would give back
        (line,) = (line for line in file.read_text().splitlines() if line.startswith("MemAvailable:"))
        return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _compile_apart(
    compile_one: Callable[..., Plan], changes: Changes, argument: Any
) -> tuple[Outcome, Plan | None, float]:
    """(outcome, plan if there is one, peak memory in bytes). A process of its own gives all memory back, and dies alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            plan, peak = pool.submit(_measured, compile_one, argument).result()
        except BrokenProcessPool:
            return Outcome(changes, "failed", "the compiler's process died, perhaps of too little memory"), None, 0.0
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            return Outcome(changes, "failed", first), None, 0.0
    return outcome_of(changes, plan), plan, peak


def _measured(compile_one: Callable[..., Plan], argument: Any) -> tuple[Plan, float]:
    plan = compile_one(argument)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return plan, float(peak) * (1 if sys.platform == "darwin" else 1024)
