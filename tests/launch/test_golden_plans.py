"""launch/plans.py and configs/plans: the plans that are checked in are of the present configs and of the pinned compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest

from walt import config
from walt.experiment import parse
from walt.experiment.planning import check_training
from walt.planning.plan import Plan
from walt.planning.topology import GENERATIONS, parse_topology

KEYS = (
    "fits hbm_limit_bytes headroom_bytes peak_bytes argument_bytes temp_bytes model_flops xla_flops estimated_cycles estimated_step_seconds "
    "estimated_mfu collectives cycles_by_kind compile_seconds topology mesh what rows tokens_per_second_per_chip schedule_seconds "
    "schedule_chip_hours versions compiler_options assumptions"
).split()


@pytest.fixture
def plans(root):
    spec = importlib.util.spec_from_file_location("launch_plans", root / "launch" / "plans.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_plan_that_is_checked_in_is_of_the_present_config_and_compiler(plans):
    files = sorted(plans.FOLDER.glob("*.json"))
    assert plans.SMALL.file in files
    by_file = {pod.file: pod for pod in plans.PODS}
    for file in files:
        assert file in by_file, f"{file.name} is no plan of launch/plans.py"
        assert plans.stale(by_file[file]) is None, f"{file.name}: make it again with launch/plans.py"
        plan = json.loads(file.read_text())
        assert set(KEYS) <= set(plan) == {each.name for each in dataclasses.fields(Plan)}
        assert plan["fits"] and plan["estimated_mfu"] > 0 and not plan["unmodelled"]


def test_there_is_a_pod_of_every_generation_and_each_divides_its_config(plans):
    assert len({pod.name for pod in plans.PODS}) == len(plans.PODS)
    assert {pod.topology.partition(":")[0] for pod in plans.PODS} == set(GENERATIONS)
    for pod in plans.PODS:
        experiment = parse(config.apply_overrides(config.load(pod.config), pod.overrides))
        topology = parse_topology(pod.topology, pod.num_slices)
        sizes = experiment.training.mesh.resolve(topology.chips * topology.generation.devices_per_chip)
        if pod.what == "train":
            check_training(experiment, sizes)


def test_a_stale_plan_is_told_and_says_why(plans, tmp_path, monkeypatch, capsys):
    text = plans.SMALL.file.read_text()
    monkeypatch.setattr(plans, "FOLDER", tmp_path)
    assert plans.stale(plans.SMALL) == "there is none yet"
    plans.SMALL.file.write_text(text)
    assert plans.stale(plans.SMALL) is None
    plan = json.loads(text)
    plans.SMALL.file.write_text(json.dumps(plan | {"config_checksum": "0"}))
    assert plans.stale(plans.SMALL) == "its config has changed"
    plans.SMALL.file.write_text(json.dumps(plan | {"versions": {"jax": "0", "libtpu": "0.0.1"}}))
    assert plans.stale(plans.SMALL).startswith("it is of libtpu 0.0.1")
    plans.SMALL.file.write_text(json.dumps(plan | {"overrides": {}}))
    assert plans.stale(plans.SMALL) == "it is of other flags"
    assert plans.main(["--list"]) == 0
    assert capsys.readouterr().out.count("there is none yet") == len(plans.PODS) - 1
    assert plans.main(["t2v/none"]) == 2 and "there is no plan 't2v/none'" in capsys.readouterr().err


def test_plans_that_are_present_are_not_made_again(plans, tmp_path, monkeypatch):
    made: list[str] = []
    text = plans.SMALL.file.read_text()
    monkeypatch.setattr(plans, "FOLDER", tmp_path)
    plans.SMALL.file.write_text(text)

    def run(command, cwd):
        made.extend(part for part in command if part.startswith("--json="))
        return subprocess.CompletedProcess(command, 1 if "v5p" in made[-1] else 0)

    monkeypatch.setattr(plans.subprocess, "run", run)
    monkeypatch.setattr(plans, "PODS", plans.PODS[:3])
    assert plans.main([]) == 1  # one of two failed, and the other was made all the same
    assert [re.search(r"-(v\w+)\.", file)[1] for file in made] == ["v5p", "v5e"]


@pytest.mark.slow
def test_the_small_plan_comes_out_again_and_its_program_has_the_forms_of_tpus(plans, root, tmp_path, monkeypatch):
    """A process of its own: the flags of this one are those of CPUs."""
    spec = importlib.util.find_spec("libtpu")
    if spec is None:
        pytest.skip("libtpu is not installed")
    golden = json.loads(plans.SMALL.file.read_text())
    monkeypatch.setattr(plans, "FOLDER", tmp_path)
    ours = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    subprocess.run(plans.SMALL.command(), cwd=root, env=environment, check=True)
    plan = json.loads(plans.SMALL.file.read_text())
    if plan["versions"] != golden["versions"]:
        pytest.skip(f"the plan is of {golden['versions']}, and here is {plan['versions']}")
    for name in ("peak_bytes", "argument_bytes", "temp_bytes", "model_flops", "xla_flops", "estimated_cycles"):
        assert plan[name] == pytest.approx(golden[name], rel=0.02), name
    for name in ("estimated_step_seconds", "estimated_mfu"):
        assert plan[name] == pytest.approx(golden[name], rel=0.02), name
    moved = {(each["kind"], each["axis"]): each["bytes"] for each in golden["collectives"]}
    assert {(each["kind"], each["axis"]): each["bytes"] for each in plan["collectives"]} == pytest.approx(
        moved, rel=0.02
    )
    # CPUs' forms have no kernels, and their compiler estimates no cycles.
    assert any("window_attention_forward" in name for name in plan["kernels"])
    assert any("window_attention_backward" in name for name in plan["kernels"])
