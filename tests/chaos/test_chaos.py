"""Half a minute of the soak that `launch/chaos.sh` runs for hours, and that it would tell if something were lost."""

import json
import random
from itertools import islice
from pathlib import Path

import chaos
import numpy as np
import pytest
import trainings

from walt import jsonlines


def test_half_a_minute_of_faults_changes_nothing(tmp_path):
    [report] = chaos.soak(0.5, ["exact"], seed=1, output=tmp_path / "soak")
    assert report["failures"] == [], chaos.text(report)
    injected = sum(count["injected"] for count in report["faults"].values())
    assert sum(count["met"] for count in report["faults"].values()) >= 1
    assert injected >= 1 and injected == sum(count["survived"] for count in report["faults"].values())
    assert report["examples"]["lost"] == report["examples"]["repeated"] == report["arrays_differing"] == 0
    assert json.loads((tmp_path / "soak" / "report.json").read_text()) == [report]


@pytest.mark.slow
def test_two_minutes_of_other_devices_and_processes_lose_nothing(tmp_path):
    [report] = chaos.soak(2.0, ["elastic"], seed=1, output=tmp_path / "soak")
    assert report["failures"] == [], chaos.text(report)
    assert report["skipped"] and report["skipped_unlisted"] == 0 and report["rounds"] >= 1


def test_what_a_fault_has_met_is_no_batch(tmp_path):
    write(tmp_path / "examples", (0, [(0, [[1, -1]])]))
    jsonlines.append(tmp_path / "examples.met", [{"kind": "unreadable", "time": 12.0}])
    for kind, began, ended, met in (
        ("unreadable", 11, 13, True),
        ("unreadable", 5, 8, True),
        ("unreadable", 13, 14, False),
        ("full disk", 11, 13, False),
    ):
        assert chaos.Soak.was_met(tmp_path, kind, began, ended) is met
    assert trainings.consumed(tmp_path / "examples")


def write(record, *starts):
    """Of every start its checkpoint, and the steps and ids that it draws."""
    record.parent.mkdir(parents=True, exist_ok=True)
    for start, (checkpoint, steps) in enumerate(starts):
        which = {"start": start, "checkpoint": checkpoint}
        jsonlines.append(f"{record}.0.jsonl", [which | {"step": step, "rows": [0], "ids": ids} for step, ids in steps])


def test_what_is_lost_or_repeated_is_told(tmp_path):
    soak = chaos.Soak("elastic", tmp_path, tmp_path, 0)
    soak.clean = type("Clean", (), {"workdir": tmp_path / "clean", "record": tmp_path / "clean" / "examples"})
    good = [(0, [[1, -1]]), (1, [[2, -1]]), (2, [[3, -1]])]
    write(soak.clean.record, (0, good))
    for name, starts, said in (
        ("lost", [(0, good[:2])], "of 1 steps were lost and those of 0 repeated"),
        ("other", [(0, [*good[:2], (2, [[2, -1]])])], "of 1 steps were lost and those of 1 repeated"),
        ("changed", [(0, good), (1, [(1, [[5, -1]])])], "a batch drawn again had other examples"),
        ("late", [(0, good[:2]), (1, good[2:])], "step 2 was drawn where step 1 was due"),
        ("early", [(0, good[:2]), (1, good)], "step 0 was drawn where step 1 was due"),
        ("left out", [(0, [good[0], good[2]]), (0, good)], "step 2 was drawn where step 1 was due"),
        ("twice", [(0, [*good[:2], *good[1:]])], "step 1 was drawn where step 2 was due"),
    ):
        write(tmp_path / name / "examples", *starts)
        assert said in soak.compare(tmp_path / name), name
    assert soak.report["examples"] == {"consumed": 5, "lost": 2, "repeated": 1}


def test_an_update_that_is_lost_or_repeated_shows_in_the_weights(monkeypatch):
    def arrays(workdir, step=None):  # every update adds one
        updates = (
            {"clean": 60, "noise": 60.005, "lost": 59, "repeated": 61, "other": 60}[workdir] if step is None else step
        )
        counted = {"other": 59}.get(workdir, 60)
        return {"weights/params/kernel": np.full(4, updates, np.float32), "training/step": np.int32(counted)}

    monkeypatch.setattr(trainings, "arrays", arrays)
    soak = chaos.Soak("elastic", Path(), Path(), 0)
    assert soak.compare_weights("noise", "clean") is None
    assert soak.report["largest_error_in_updates"] == pytest.approx(0.005, rel=1e-2)
    for name in ("lost", "repeated"):
        assert soak.compare_weights(name, "clean") == "the parameters are off by 1 updates"
    assert soak.compare_weights("other", "clean") == "the state is that of step 59"


def test_a_seed_has_its_faults():
    def drawn(seed):
        return list(islice(chaos.shuffled(chaos.KINDS["exact"], random.Random(seed)), 20))

    assert drawn(3) == drawn(3) != drawn(4)
    assert set(drawn(3)[:5]) == set(chaos.KINDS["exact"])
