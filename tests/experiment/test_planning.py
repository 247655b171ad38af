"""Plans of shipped configs, with eight CPU devices in place of a pod's: the same programs, of which this compiler estimates no cycles."""

import json

import jax
import pytest

from walt import plan as command_plan
from walt.config import ConfigError, apply_overrides, load
from walt.experiment import parse, planning
from walt.experiment.planning import changes_that_save_memory, plan_training
from walt.parallel.mesh import make_mesh
from walt.planning.plan import memory_in
from walt.planning.topology import Topology, parse_topology

MESH = {
    "training.mesh.data": "2",
    "training.mesh.fsdp": "4",
    "data.batch_size": "8",
    "transformer.width": "48",
    "transformer.depth": "2",
}


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices()[: self.chips])


def experiment_of(name, **overrides):
    chosen = {key: value for key, value in MESH.items() if name.startswith("t2v") or not key.startswith("transformer")}
    return parse(apply_overrides(load(name), {**chosen, **overrides}))


@pytest.mark.slow
def test_a_plan_has_memory_flops_and_collectives_and_is_printed_and_written(here, tmp_path, capsys):
    flags = [f"--config.{name}={value}" for name, value in MESH.items()]
    file = tmp_path / "plan.json"
    command_plan.main(["walt plan", "--config=t2v/atari:mini", "--topology=v5e:2x4", f"--json={file}", *flags])
    printed = capsys.readouterr().out
    assert "train step of 8 videos on v5e:2x4 (8 chips), mesh data 2, fsdp 4" in printed and "fits by 1" in printed
    plan = json.loads(file.read_text())
    assert plan["fits"] and plan["argument_bytes"] < plan["peak_bytes"] < plan["hbm_limit_bytes"] == 16e9
    assert plan["mesh"] == {"slice": 1, "data": 2, "fsdp": 4, "context": 1, "tensor": 1} and plan["chips"] == 8
    assert {"kind", "axis", "bytes", "count"} == set(plan["collectives"][0])
    axes = {(each["kind"], each["axis"]) for each in plan["collectives"]}
    assert ("all-gather", "fsdp") in axes  # of weights
    assert any(kind in ("all-reduce", "reduce-scatter") for kind, _ in axes)  # of gradients
    names = "xla_flops temp_bytes model_flops estimated_cycles cycles_by_kind estimated_step_seconds estimated_mfu compile_seconds topology"
    assert set(names.split()) <= set(plan)


@pytest.mark.slow
def test_the_critic_and_the_perceptual_network_are_in_the_step_of_an_autoencoder(here):
    """Lowered, not compiled: that takes minutes."""
    experiment = experiment_of(
        "autoencoder/ucf101:mini", **{"training.mesh.data": "1", "training.mesh.fsdp": "8", "clip_size": "17,64,64"}
    )
    mesh = make_mesh(experiment.training.mesh, jax.devices())
    task, axes = planning._task(experiment, mesh)
    assert set(planning.lower_train_step(experiment, task, axes, mesh).in_avals[0][0].params) == {
        "generator",
        "discriminator",
    }


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("t2v/atari:mini", {"training.mesh.fsdp": "3"}, "mesh .* does not fit 8 devices"),
        (
            "t2v/atari:mini",
            {"data.batch_size": "12"},
            "data.batch_size is 12, which does not divide .* a multiple of 8",
        ),
        (
            "t2v/atari:mini",
            {"training.mesh.fsdp": "1", "training.mesh.tensor": "4"},
            "does not divide transformer.heads 3",
        ),
        ("autoencoder/atari:mini", {}, "clip_size must be set to plan an autoencoder"),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_compiled(here, name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan_training(experiment_of(name, **overrides), parse_topology("v5e:2x4"))


def test_changes_that_save_memory_come_nearest_first():
    experiment = experiment_of("t2v/atari", **{"data.batch_size": "32"})
    found = dict(changes_that_save_memory(experiment, experiment.training.mesh.resolve(8)))
    assert list(found) == [
        "--config.transformer.remat=full",
        "--config.training.mesh.data=1 --config.training.mesh.fsdp=8",
        "--config.training.accumulation=2",
        "--config.training.accumulation=4",
    ]
    last = found["--config.training.accumulation=4"]
    assert last.transformer.remat == "full" and last.training.mesh.fsdp == 8 and last.training.accumulation == 4


def test_a_change_of_the_mesh_divides_the_width():
    experiment = parse(load("t2v/base_3b"))  # 1,920 wide
    words = [words for words, _ in changes_that_save_memory(experiment, experiment.training.mesh.resolve(256))]
    assert words[1] == "--config.training.mesh.data=2 --config.training.mesh.fsdp=128"


def test_what_a_compiler_would_need_is_read_from_its_error():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded"
    assert memory_in(message) == 20.5 * 2**30
    newer = "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (22.88G) exceeds available HBM (15.75G)."
    assert memory_in(newer) == 22.88 * 2**30
    assert memory_in("INTERNAL: something else") is None
