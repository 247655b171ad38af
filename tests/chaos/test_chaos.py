"""Half a minute of the soak that `launch/chaos.sh` runs for hours, and that it would tell if something were lost."""

import json
import random
from itertools import islice

import chaos
import pytest


def test_half_a_minute_of_faults_changes_nothing(tmp_path):
    [report] = chaos.soak(0.5, ["exact"], seed=1, output=tmp_path / "soak")
    assert report["failures"] == [], chaos.text(report)
    injected = sum(count["injected"] for count in report["faults"].values())
    assert injected >= 1 and injected == sum(count["survived"] for count in report["faults"].values())
    assert report["examples"]["lost"] == report["examples"]["repeated"] == report["arrays_differing"] == 0
    assert json.loads((tmp_path / "soak" / "report.json").read_text()) == [report]


@pytest.mark.slow
def test_two_minutes_of_other_devices_and_processes_lose_nothing(tmp_path):
    [report] = chaos.soak(2.0, ["elastic"], seed=1, output=tmp_path / "soak")
    assert report["failures"] == [], chaos.text(report)
    assert report["skipped"] and report["skipped_unlisted"] == 0 and report["rounds"] >= 1


def write(record, steps):
    record.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{record}.0.jsonl", "a") as file:
        file.writelines(json.dumps([step, [0], ids]) + "\n" for step, ids in steps)


def test_what_is_lost_or_repeated_is_told(tmp_path):
    soak = chaos.Soak("elastic", tmp_path, tmp_path, 0)
    soak.clean = type("Clean", (), {"workdir": tmp_path / "clean", "record": tmp_path / "clean" / "examples"})
    good = [(0, [[1, -1]]), (1, [[2, -1]]), (2, [[3, -1]])]
    write(soak.clean.record, good)
    for name, steps, said in (
        ("lost", good[:2], "of 1 steps were lost and those of 0 repeated"),
        ("other", [*good[:2], (2, [[2, -1]])], "of 1 steps were lost and those of 1 repeated"),
        ("changed", [*good, (1, [[5, -1]])], "a batch drawn again had other examples"),
    ):
        write(tmp_path / name / "examples", steps)
        assert said in soak.compare(tmp_path / name)
    assert soak.report["examples"] == {"consumed": 5, "lost": 2, "repeated": 1}


def test_a_seed_has_its_faults():
    def drawn(seed):
        return list(islice(chaos.shuffled(chaos.KINDS["exact"], random.Random(seed)), 20))

    assert drawn(3) == drawn(3) != drawn(4)
    assert set(drawn(3)[:5]) == set(chaos.KINDS["exact"])
