"""What a job remembers between its starts."""

import json

import pytest

from walt.config import ConfigError
from walt.experiment import progress
from walt.experiment.progress import Progress

REQUEST = {"clips": 4, "games": ("a", "b")}


@pytest.fixture
def clock(monkeypatch):
    """Time and memory that only move when told to."""

    class Clock:
        now, memory = 0.0, 1.5

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(progress, "peak_memory_gb", lambda: Clock.memory)
    return Clock


def spend(job, clock, name, seconds, **arguments):
    with job.stage(name, **arguments):
        clock.now += seconds


def test_refuses_another_request_and_keeps_decisions(tmp_path):
    job = Progress(tmp_path, REQUEST)
    assert job.decide("steps", lambda: 7) == 7
    with job.stage("one"):
        pass
    again = Progress(tmp_path, REQUEST)
    assert again.decide("steps", lambda: 9) == 7 and "one" in again.seconds
    with pytest.raises(ConfigError, match="clips: 4 -> 5"):
        Progress(tmp_path, {"clips": 5, "games": ("a", "b")})


def test_a_request_binds_only_once_something_was_done(tmp_path):
    Progress(tmp_path / "job", REQUEST)
    assert not (tmp_path / "job").exists()
    Progress(tmp_path / "job", {"clips": 5})


def test_a_stage_that_starts_over_counts_once_and_one_that_continues_adds_up(tmp_path, clock):
    spend(Progress(tmp_path, REQUEST), clock, "sample", 20.0)
    spend(Progress(tmp_path, REQUEST), clock, "sample", 30.0)
    with pytest.raises(KeyboardInterrupt), Progress(tmp_path, REQUEST).stage("train", continues=True):
        clock.now += 5.0
        raise KeyboardInterrupt
    spend(Progress(tmp_path, REQUEST), clock, "train", 7.0, continues=True)
    assert Progress(tmp_path, REQUEST).seconds == {"sample": 30.0, "train": 12.0}


def test_a_result_that_is_there_keeps_the_time_it_took(tmp_path, clock):
    job, result = Progress(tmp_path, REQUEST), tmp_path / "footage"
    spend(job, clock, "record", 3.0, result=result)
    spend(job, clock, "record", 40.0, result=result)
    result.mkdir()
    spend(job, clock, "record", 0.5, result=result)
    assert job.seconds == {"record": 40.0}


def test_the_largest_memory_of_all_starts_is_kept(tmp_path, clock):
    for memory in (1.5, 3.0, 0.5):
        clock.memory = memory
        spend(Progress(tmp_path, REQUEST), clock, "train", 1.0)
    assert Progress(tmp_path, REQUEST).peak_memory_gb == 3.0
    assert json.loads((tmp_path / "progress.json").read_text())["peak_memory_gb"] == 3.0
