"""Plans made side by side, each in a process of its own, and their ranking."""

import dataclasses
import os

from walt.planning.plan import Plan
from walt.planning.search import Outcome, compile_all, describe_ranking, free_memory, jobs_for, ranked


def plan_of(step: float | None = 2.0, peak: float = 1e9) -> Plan:
    values: dict = {field.name: None for field in dataclasses.fields(Plan)}
    values |= {"what": "train", "rows": 8, "mesh": {"slice": 1, "data": 2, "fsdp": 4, "context": 1, "tensor": 1}}
    values |= {"fits": peak < 16e9, "peak_bytes": peak, "headroom_bytes": 16e9 - peak, "unmodelled": ()}
    return Plan(**values | {"estimated_step_seconds": step, "estimated_mfu": step and 1 / step})


def compile_candidate(number: int) -> Plan:
    """Runs in a process of its own."""
    if number == 2:
        raise ValueError("first line\nsecond")
    if number == 3:
        os._exit(9)
    return plan_of(step=float(5 - number), peak=20e9 if number == 1 else 1e9)


def test_candidates_are_compiled_apart_and_one_that_fails_takes_no_other_with_it():
    found = [outcome for outcome, _ in compile_all(compile_candidate, [((f"n={n}",), n) for n in range(4)], jobs=2)]
    lines = ranked(found)
    assert [each.result for each in lines] == ["fits", "does not fit", "failed", "failed"]
    assert [each.changes[0] for each in lines[:2]] == ["n=0", "n=1"]
    assert {each.why for each in lines[2:]} == {
        "first line",
        "the compiler's process died, perhaps of too little memory",
    }
    skipped = Outcome(("n=4",), "skipped", "nine does not divide two")
    printed = describe_ranking([*found, skipped])
    assert printed[0] == (
        "ranking of 5 candidates: 1 fit, 1 do not fit, 2 failed, 1 do not divide and were not compiled"
    )
    assert "5 s, MFU 0.200, 1.0 GB" in printed[1] and "4.0 GB too much" in printed[2]
    assert "nine does not divide two" in printed[-1]


def test_as_many_compilations_as_memory_takes():
    assert jobs_for(2e9, available=1e9) == 1
    assert jobs_for(1.0, available=1e12) == os.cpu_count()
    assert 1e6 < free_memory() < 1e14


def test_the_fastest_comes_first():
    steps = [3.0, 1.0, None, 2.0]
    found = [Outcome((str(step),), "fits", estimated_step_seconds=step) for step in steps]
    assert [each.estimated_step_seconds for each in ranked(found)] == [1.0, 2.0, 3.0, None]
