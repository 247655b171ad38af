"""Models that are measured while they train, and by samples of their checkpoints, with a small model and a stand-in for I3D."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import stand_in
import tiny

from walt import command, evaluate, experiment
from walt.config import ConfigError, apply_overrides, load
from walt.evaluation import EvaluationError, card, networks
from walt.evaluation.config import Sampling
from walt.evaluation.distance import evaluate_footage, read_real, stored_statistics
from walt.evaluation.features import ALONE
from walt.evaluation.fidelity import measure
from walt.evaluation.footage import of_arrays, open_footage
from walt.evaluation.samples import prompts_of
from walt.evaluation.source import read_clips
from walt.experiment import measuring
from walt.experiment.config import parse
from walt.generation.pipeline import load as load_pipeline
from walt.training.metrics import read_metrics

SAMPLES = 12


@pytest.fixture(autouse=True)
def network(monkeypatch):
    return stand_in.install(monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("world"))


STAGE_1 = {
    "data.batch_size": "4",
    "clip_size": "None",
    "autoencoder.base_channels": "4",
    "autoencoder.groups": "4",
    "autoencoder.mid_blocks": "0",
    "autoencoder.channel_multipliers": "1,1",
    "autoencoder.strides": "((4, 2),)",
    "autoencoder.temporal_kernels": "1,3",
    "training.optimizer.warmup_steps": "1",
    "calibration_clips": "4",
}


def config(name, evaluators, overrides):
    found = apply_overrides(load(str(name)), {"training.num_steps": "4", **overrides})
    for key, entry in evaluators.items():
        found.evaluators[key] = entry
    return found


def stage_2(world, evaluators):
    return config(world / "config.py", evaluators, {"samples_every": "0"})


@pytest.fixture(scope="module")
def trained(world):
    """A run of stage 2 that was measured after every second step."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in.install(patch)
        entry = {"every": 2, "protocol": stand_in.NAME, "samples": SAMPLES, "steps": 3, "batch_size": 8}
        experiment.train(stage_2(world, {"look": entry}), world / "run", devices=jax.devices()[:2])
    return world / "run"


def test_samples_are_measured_while_a_model_trains(trained, world):
    records = {r["step"]: r for r in read_metrics(trained) if "look/stand_in_distance" in r}
    assert sorted(records) == [2, 4]
    result = json.loads((trained / "evaluations" / "look-4.json").read_text())
    assert records[4]["look/stand_in_distance"] == result["stand_in_distance"] > 0
    assert records[4]["look/num_generated"] == SAMPLES and records[4]["look/num_real"] == 8
    sampled = result["card"]["sampled"]
    assert sampled["step"] == 4 and sampled["weights"] == "ema" and sampled["sampler"]["steps"] == 3
    assert sampled["prompts"]["different"] == 2  # the first captions of the held-out data
    assert result["card"]["network"]["name"] == "stand-in" and result["card"]["real"]["from"] == "clips (heldout)"
    # Another step, or another sampler, is what figures are compared for; another number of samples is not.
    paths = [trained / "evaluations" / f"look-{step}.json" for step in (2, 4)]
    assert len(card.compare(tuple(paths))) == 2


def test_the_same_figures_come_from_the_checkpoint(trained, world, tmp_path):
    """Averaged weights, prompts, seeds and clips are those that training measured with; the held-out clips are found by themselves."""
    out = tmp_path / "result.json"
    flags = [f"--protocol={stand_in.NAME}", f"--num_samples={SAMPLES}", "--steps=3", f"--json={out}", "--intervals=0"]
    evaluate.main(["walt evaluate", f"--checkpoint={trained}", f"--cache={tmp_path / 'cache'}", *flags])
    found, logged = (json.loads(p.read_text()) for p in (out, trained / "evaluations" / "look-4.json"))
    assert found["stand_in_distance"] == pytest.approx(logged["stand_in_distance"], rel=1e-3)
    assert found["card"]["sampled"]["step"] == 4 and found["card"]["sampled"]["model"] == str(trained)
    assert found["card"]["real"]["sha256"] == logged["card"]["real"]["sha256"]


def test_what_was_measured_already_is_not_drawn_again(trained, world, network, tmp_path, monkeypatch):
    monkeypatch.setattr("walt.evaluation.features.PART", 8)
    real, asked, generate = open_footage(world / "clips"), [], measuring.Pipeline.generate

    def counting(self, prompts, *, numbers, **options):
        if len(asked) == 1 and interrupted:
            raise KeyboardInterrupt
        asked.append(list(numbers))
        return generate(self, prompts, numbers=numbers, **options)

    def run():
        footage, sampled = measuring.samples_of(str(trained), real, 20, Sampling(steps=2), None, ALONE)
        return evaluate_footage(real, footage, network, cache=tmp_path, intervals=0, sampled=sampled).figures

    monkeypatch.setattr(measuring.Pipeline, "generate", counting)
    interrupted = True
    with pytest.raises(KeyboardInterrupt):
        run()
    interrupted = False
    first = run()
    assert asked == [[*range(16)], [*range(16)], [*range(16, 20)]]  # half of the first batch was still to be measured
    assert run() == first and len(asked) == 3


@pytest.mark.slow
def test_reconstructions_are_measured_while_an_autoencoder_trains(world):
    entries = {
        "fidelity": {"every": 2, "clips": 6, "batch_size": 4, "protocol": stand_in.NAME},
        "plain": {"every": 4, "clips": 4, "batch_size": 4},  # I3D needs nine frames, these clips have five
    }
    found = config("autoencoder/atari:mini", entries, {**STAGE_1, "data.path": str(world / "clips")})
    experiment.train(found, world / "stage1", devices=jax.devices()[:1])
    merged = {step: {} for step in (2, 4)}
    for record in read_metrics(world / "stage1"):
        merged.get(record["step"], {}).update(record)
    names = {"psnr", "ssim", "sharpness", "motion_ratio", "flicker_ratio"}
    measured = {name.removeprefix("fidelity/") for name in merged[2] if name.startswith("fidelity/")}
    assert names | {"stand_in_distance", "stand_in_kernel_distance"} <= measured
    assert {f"plain/{name}" for name in names} <= merged[4].keys() and "plain/fvd" not in merged[4]
    # The same clips by the model as it was saved.
    clips = read_clips(world / "clips", limit=6).videos
    figures = measure(clips, load_pipeline(world / "stage1").reconstruct(clips))
    for name in names:
        assert merged[4][f"fidelity/{name}"] == pytest.approx(getattr(figures, name), rel=2e-3)
    assert json.loads((world / "stage1" / "evaluations" / "fidelity-4.json").read_text())["card"]["paired"] is True


def test_evaluators_that_cannot_be_are_refused_before_the_run_begins(world):
    entry = {"every": 2, "samples": 4}
    for evaluators, message in (
        ({"look": {**entry, "protocol": "fvd"}}, r"evaluators\.look: protocol must be one of .*, got 'fvd'"),
        ({"look": {**entry, "every": 0}}, r"evaluators\.look: every must be at least 1, got 0"),
        ({"look": {**entry, "smaples": 4}}, r"unknown config key 'evaluators\.look\.smaples'.*samples"),
        ({"look": {**entry, "steps": 0}}, r"evaluators\.look: steps: 0 is out of range"),
        ({"look": {**entry, "samples": 1}}, "samples must be at least 2"),
        ({"heldout": entry}, "an evaluator cannot be called 'heldout'"),
        ({"a/b": entry}, "an evaluator cannot be called 'a/b'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(stage_2(world, evaluators))


def test_missing_weights_and_clips_end_a_run_before_it_begins(world, monkeypatch):
    entry = {"every": 2, "samples": 4, "protocol": stand_in.NAME}

    def missing(path):
        raise EvaluationError("no weights")

    with monkeypatch.context() as patch:
        stand_in_network = networks.NETWORKS[stand_in.NAME]
        patch.setitem(networks.NETWORKS, stand_in.NAME, dataclasses.replace(stand_in_network, read=missing))
        with pytest.raises(EvaluationError, match="no weights"):
            experiment.train(stage_2(world, {"look": entry}), world / "none", devices=jax.devices()[:1])
    entry["real"] = str(world / "nowhere")
    with pytest.raises(EvaluationError, match=r"there is no folder of videos at .*nowhere"):
        experiment.train(stage_2(world, {"look": entry}), world / "none", devices=jax.devices()[:1])
    assert not (world / "none").exists()


def test_clips_of_another_shape_than_the_samples_end_a_run_before_it_begins(world, network, tmp_path):
    entry = {"every": 2, "samples": 4, "protocol": stand_in.NAME}
    (tmp_path / "real").mkdir()
    np.save(tmp_path / "real" / "a.npy", np.zeros((4, 6, 16, 16, 3), np.uint8))
    statistics = tmp_path / "real.npz"
    footage = open_footage(tmp_path / "real")
    evaluate_footage(footage, footage, network, intervals=0, save_real=statistics)
    message = r"evaluators\.look: real clips are \[6, 16, 16, 3\] but samples of this model \[5, 16, 16, 3\]"
    for real in (tmp_path / "real", statistics):
        with pytest.raises(EvaluationError, match=message):
            experiment.train(
                stage_2(world, {"look": {**entry, "real": str(real)}}), tmp_path / "none", devices=jax.devices()[:1]
            )
    assert not (tmp_path / "none").exists()


def test_the_seed_of_samples_is_another_than_that_of_clips(trained, tmp_path):
    paths = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        flags = [f"--protocol={stand_in.NAME}", "--num_samples=4", "--steps=1", f"--json={path}", "--intervals=0"]
        evaluate.main(
            ["walt evaluate", f"--checkpoint={trained}", f"--cache={tmp_path}", f"--sampling_seed={seed}", *flags]
        )
    found = [result for _, result in card.compare(tuple(paths))]
    assert [result["card"]["sampled"]["seed"] for result in found] == [0, 1]
    assert [result["card"]["seed"] for result in found] == [0, 0]
    assert found[0]["stand_in_distance"] != found[1]["stand_in_distance"]


def test_models_that_cannot_be_sampled_and_runs_without_clips_are_refused(trained, world, network):
    real = open_footage(world / "clips")
    for checkpoint, prompts, message in (
        (
            str(world / "autoencoder"),
            None,
            "holds an autoencoder alone and makes no videos: measure it with --autoencoder",
        ),
        (str(trained), str(world / "none.txt"), "none.txt holds no prompts"),
    ):
        (world / "none.txt").write_text("\n")
        with pytest.raises(EvaluationError, match=message):
            measuring.samples_of(checkpoint, real, 4, Sampling(), prompts, ALONE)
    with pytest.raises(
        ConfigError, match="mini is no work directory, whose held-out clips could be taken: name real clips"
    ):
        measuring.heldout_clips("mini")
    with pytest.raises(ConfigError, match=r"the clips of .*nowhere are not there any more"):
        measuring.clips_of(str(world / "nowhere"))
    flags = ["walt evaluate", f"--real={world / 'clips'}", f"--generated={world / 'clips'}"]
    for flag, message in (
        ("--steps=3", "--steps is for --checkpoint"),
        ("--checkpoint=mini", "give one of --generated"),
    ):
        with pytest.raises(command.CommandError, match=message):
            evaluate.main([*flags, flag])


def test_prompts_are_captions_evenly_spaced_or_in_turn(world):
    real = open_footage(world / "clips")
    assert prompts_of(real, 4).texts == ("a red ball",) * 4 and prompts_of(real, 4).labels == ("red",) * 4
    assert prompts_of(real, 10).texts == ("a red ball", "a blue ball") * 5
    assert prompts_of(real, 3, classes=("blue", "red")).texts == ("red", "red", "blue")
    shipped = read_real(stored_statistics("atari-heldout"))
    assert shipped.values.shape == (128, 400) and shipped.card["network"]["published"]
    assert prompts_of(shipped, 2).labels == ("boxing", "ms_pacman")
    assert prompts_of(shipped, 2).texts[0] == "a game of Boxing, the boxer moves right"
    with pytest.raises(EvaluationError, match=r"the stored statistics of .* tell no captions: give prompts in a file"):
        prompts_of(dataclasses.replace(shipped, described=()), 2)
    arrays = of_arrays(np.zeros((2, 5, 8, 8, 3), np.uint8), "real")
    with pytest.raises(EvaluationError, match=r"real video 0 of 2 arrays has no caption to make a video of.*--prompts"):
        prompts_of(arrays, 2)
