"""Plans of samplers and autoencoders, with eight CPU devices in place of a pod's, and the search for the best train step."""

import dataclasses
import math

import jax
import pytest

import walt
from walt import plan as command_plan
from walt.command import CommandError
from walt.config import ConfigError, apply_overrides, load
from walt.diffusion.configs import SamplerConfig
from walt.diffusion.flops import evaluations, sampling_flops
from walt.experiment import parse, plan_search, plans
from walt.experiment.plan_search import REMATS, candidates, search
from walt.experiment.plans import lower_half, lower_sampler, plan_program
from walt.generation import programs
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.planning.plan import Plan
from walt.planning.search import Outcome
from walt.planning.topology import Topology, parse_topology
from walt.transformer.flops import transformer_flops

MESH = {"training.mesh.data": "2", "training.mesh.fsdp": "4"}
SMALL = MESH | {"transformer.width": "48", "transformer.depth": "2", "sampler.steps": "3"}
POD = parse_topology("v5e:2x4")


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(Topology, "devices", lambda self: jax.devices()[: self.chips])


def experiment_of(name, **overrides):
    return parse(apply_overrides(load(name), overrides))


def test_a_sampler_is_planned_with_all_its_steps_and_guidance(here):
    experiment = experiment_of("t2v/atari:mini", **SMALL, **{"sampler.guidance": "4"})
    plan = plan_program(experiment, POD, "sample")
    forward = transformer_flops(experiment.transformer, experiment.diffusion.caption_length)
    assert (plan.what, plan.rows, plan.schedule_steps) == ("sample", 16, None)
    assert plan.model_flops == 16 * 2 * 3 * forward
    # Weights are divided over fsdp, and gathered in every step.
    assert ("all-gather", "fsdp") in {(each.kind, each.axis) for each in plan.collectives}
    assert max(each.count for each in plan.collectives) >= 3
    unguided = dataclasses.replace(experiment, sampler=dataclasses.replace(experiment.sampler, guidance=1.0))
    _, work = lower_sampler(unguided, make_mesh(experiment.training.mesh, jax.devices()), 8)
    assert work.row_flops == 3 * forward


def test_the_planned_sampler_is_the_pipelines(monkeypatch):
    """The very text of what `Pipeline.generate` gives the compiler."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    pipeline = walt.load("mini", mesh=mesh)
    given = []

    class Stop(Exception):
        pass

    def record(*arguments):
        given.extend(arguments)
        raise Stop

    real = programs.sample_latents
    monkeypatch.setattr(programs, "sample_latents", record)
    with pytest.raises(Stop):
        pipeline.generate(["a"] * 16, steps=3)
    monkeypatch.setattr(programs, "sample_latents", real)
    config, sampler = given[0], dataclasses.replace(pipeline.sampler, steps=3)
    experiment = dataclasses.replace(
        experiment_of("t2v/atari:mini"),
        transformer=config.transformer,
        text=config.text,
        diffusion=config.diffusion,
        sampler=sampler,
    )
    with jax.set_mesh(mesh):
        expected = real.lower(*given).as_text()
    # One slice is no division, and the keys that a program made are not said to have any.
    texts = [text.replace('"slice", ', "") for text in (lower_sampler(experiment, mesh, 16)[0].as_text(), expected)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("solver", "times"), [("ddim", 5), ("dpmpp_2m", 5), ("flow_euler", 5), ("heun", 9), ("flow_heun", 9)]
)
def test_evaluations_are_those_that_are_made(solver, times):
    assert evaluations(SamplerConfig(steps=5, solver=solver)) == times


def test_a_sampler_without_prompts_has_no_guidance():
    experiment = experiment_of("frames/k600:mini")
    sampler = SamplerConfig(steps=2, guidance=3.0)
    silent = dataclasses.replace(experiment.transformer, num_classes=None, text_width=None)
    assert sampling_flops(silent, None, 1, sampler) == 2 * transformer_flops(silent)


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_half_of_an_autoencoder_costs_its_products_and_lies_as_in_a_pipeline(what):
    experiment = experiment_of("autoencoder/atari:mini", **MESH, clip_size="5,16,16")
    mesh = make_mesh(experiment.training.mesh, jax.devices())
    lowered, work = lower_half(experiment, mesh, 8, what)
    assert (work.what, work.rows, work.row_tokens) == (what, 8, 2 * 2 * 2)
    # XLA counts norms and activations as well; a small model has much of them.
    flops = lowered.cost_analysis()["flops"]
    assert 0.75 * flops < 8 * work.row_flops < flops
    text = lowered.as_text().partition("func.func public @main")[2].partition("->")[0]
    assert text.count('"fsdp"') > 10 and '[{"slice", "data", "fsdp"}' in text  # weights, and rows


def test_encoding_is_planned(here):
    experiment = experiment_of("autoencoder/atari:mini", **MESH, clip_size="5,16,16")
    plan = plan_program(experiment, POD, "encode", rows=8)
    weights = programs.autoencoder(experiment.autoencoder).abstract_params
    assert (plan.what, plan.rows, plan.fits, plan.schedule_steps) == ("encode", 8, True, None)
    assert plan.argument_bytes < sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights)) / 2


@pytest.mark.parametrize(
    ("name", "what", "rows", "message"),
    [
        ("t2v/atari:mini", "smple", None, "'smple' is none of train, sample, decode, encode; did you mean 'sample'"),
        ("t2v/atari:mini", "decode", None, "of a config of the stage 'autoencoder', such as autoencoder/t2v_128"),
        ("autoencoder/atari:mini", "sample", None, "of a config of the stage 'diffusion'"),
        ("autoencoder/atari:mini", "encode", None, "clip_size must be set"),
        ("t2v/atari:mini", "sample", 12, "batch_size is 12, but the mesh divides it into 8 parts"),
        ("t2v/atari:mini", "train", 8, "set --config.data.batch_size"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_it_is_compiled(here, name, what, rows, message):
    with pytest.raises(ConfigError, match=message):
        plan_program(experiment_of(name, **MESH), POD, what, rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--search", "--what=sample"], "--search is of train steps"),
        (["--jobs=2"], "--jobs is of a search"),
        (["--search", "--jobs=0"], "--jobs must be at least 1"),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(CommandError, match=message):
        command_plan.main(["walt plan", "--config=t2v/atari:mini", "--topology=v5e:2x4", *flags])


def test_a_sampler_that_does_not_fit_is_tried_with_fewer_videos(here, monkeypatch):
    experiment = experiment_of("t2v/atari:mini", **SMALL)
    asked = []

    def found(experiment, topology, what, rows):
        asked.append((experiment.training.mesh.fsdp, rows))
        return dataclasses.replace(plan_of(), fits=rows == 16)

    monkeypatch.setattr(plans, "plan_program", found)
    large = dataclasses.replace(plan_of(), what="sample", rows=64, fits=False)
    flags, _ = plans.fitting(experiment, POD, large, 64)
    assert asked == [(8, 64), (8, 32), (8, 16)]
    assert flags == ["--config.training.mesh.data=1 --config.training.mesh.fsdp=8", "--batch_size=16"]


# ---- search


def test_candidates_are_all_that_divide_and_the_others_are_said_to_be_skipped():
    experiment = experiment_of("t2v/atari:mini", **SMALL, **{"data.batch_size": "16"})
    found, skipped = candidates(experiment, experiment.training.mesh.resolve(8))
    meshes = [(each.training.mesh.data, each.training.mesh.fsdp) for _, each in found]
    assert set(meshes) == {(1, 8), (2, 4), (4, 2), (8, 1)} and not skipped
    assert len(found) == 4 * 2 * len(REMATS)  # two rows a device: at once, or one after the other
    assert {each.transformer.remat for _, each in found} == set(REMATS)
    itself = dataclasses.replace(experiment.training, mesh=MeshConfig(data=2, fsdp=4))
    assert found[0][1] == dataclasses.replace(experiment, training=itself)
    assert found[0][0][:3] == (
        "--config.training.mesh.data=2",
        "--config.training.mesh.fsdp=4",
        "--config.training.accumulation=1",
    )
    # What the flags say is what is compiled.
    for flags, each in found:
        overrides = dict(flag.removeprefix("--config.").split("=") for flag in flags)
        assert experiment_of("t2v/atari:mini", **SMALL | {"data.batch_size": "16"} | overrides) == each
    narrow = dataclasses.replace(experiment, transformer=dataclasses.replace(experiment.transformer, width=36))
    found, skipped = candidates(narrow, experiment.training.mesh.resolve(8))
    assert [each.changes for each in skipped] == [("--config.training.mesh.data=1", "--config.training.mesh.fsdp=8")]
    assert "does not divide transformer.width 36" in skipped[0].why and skipped[0].result == "skipped"


def test_a_wider_search_divides_devices_among_more_axes():
    experiment = experiment_of("t2v/atari:mini", **SMALL, **{"data.batch_size": "8"})
    found, skipped = candidates(experiment, experiment.training.mesh.resolve(8), ("fsdp", "context", "tensor"))
    meshes = {tuple(each.training.mesh.axis_sizes.values()) for _, each in found}
    assert all(math.prod(mesh) == 8 and mesh[1] == 2 for mesh in meshes) and (1, 2, 2, 2, 1) in meshes
    assert any("tensor" in each.why for each in skipped)  # three heads
    with pytest.raises(ConfigError, match="no axis 'fdsp' to search along; did you mean 'fsdp'"):
        candidates(experiment, experiment.training.mesh.resolve(8), ("fdsp",))
    for axes in (("fsdp", "fsdp"), ("slice", "data")):
        with pytest.raises(ConfigError, match="each axis once, and not slice"):
            candidates(experiment, experiment.training.mesh.resolve(8), axes)


def plan_of(step: float | None = 2.0, peak: float = 1e9) -> Plan:
    values: dict = {field.name: None for field in dataclasses.fields(Plan)}
    values |= {"what": "train", "rows": 8, "mesh": {"slice": 1, "data": 2, "fsdp": 4, "context": 1, "tensor": 1}}
    values |= {"fits": peak < 16e9, "peak_bytes": peak, "headroom_bytes": 16e9 - peak, "unmodelled": ()}
    return Plan(**values | {"estimated_step_seconds": step, "estimated_mfu": step and 1 / step})


def test_the_search_gives_the_fastest_that_fits(here, monkeypatch):
    experiment = experiment_of("t2v/atari:mini", **SMALL, **{"data.batch_size": "8"})

    def compiled(compile_one, chosen, jobs):
        for changes, each in chosen:
            step = 1.0 if each.training.mesh.fsdp == 2 and each.transformer.remat == "full" else 3.0
            yield Outcome(changes, "fits", estimated_step_seconds=step), plan_of(step)

    monkeypatch.setattr(plan_search, "compile_all", compiled)
    outcomes, best = search(experiment, POD)
    assert len(outcomes) == 4 * len(REMATS) and best.estimated_step_seconds == 1.0
    assert "--config.training.mesh.fsdp=2" in best.changes and "--config.transformer.remat=full" in best.changes
