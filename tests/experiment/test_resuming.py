"""What a run records of itself, what it may go on with, and what is refused before its work directory is touched. Nothing
here is trained."""

import dataclasses
import functools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from walt import experiment
from walt.config import ConfigError, apply_overrides, load, to_config_dict
from walt.data import records
from walt.data.media import encode_clip
from walt.data.records import DatasetError
from walt.experiment import InitRules, card, provenance, stage1, stage2
from walt.experiment.config import resolved
from walt.generation.bundle import Bundle, BundleError, Component, encoder_checksum, write_bundle
from walt.generation.sources import open_bundle
from walt.training import checksums
from walt.training.checkpoint import Checkpoints, Clock, stored_config
from walt.training.checks import check_config
from walt.training.folder import ITEMS, CheckpointError
from walt.training.state import TrainState


def write_records(folder, shapes, make_record, **extra):
    with records.new_dataset(folder) as directory:
        with records.RecordWriter(directory, "train") as writer:
            for index in range(8):
                writer.write({"id": str(index), "captions": ["boxing"], "label": "boxing", **make_record()})
            splits = {"train": writer.close()}
        records.write_manifest(directory, records.Manifest("test", splits, shapes, 15.0, 0, {}, {}, extra))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Per stage a function from a seed to a data set of its own."""
    folder = tmp_path_factory.mktemp("data")
    checksum = encoder_checksum(open_bundle("mini").components["autoencoder"])

    @functools.cache
    def clips(seed):
        video = np.random.default_rng(seed).integers(0, 255, (5, 16, 16, 3), np.uint8)
        return write_records(
            folder / f"clips{seed}", {"clip": video.shape}, lambda: {"clip": encode_clip(video), "fps": 15.0}
        )

    @functools.cache
    def latents(seed):
        video = np.random.default_rng(seed).normal(size=(5, 8, 8, 8)).astype(np.float32)
        return write_records(
            folder / f"latents{seed}",
            {"video": video.shape, "images": video.shape},
            lambda: {"video": video.tobytes(), "images": video.tobytes()},
            autoencoder=checksum,
        )

    return {"autoencoder": clips, "diffusion": latents}


def make_experiment(stage, path, **changes):
    name = {"autoencoder": "autoencoder/atari:mini", "diffusion": "t2v/atari:mini"}[stage]
    overrides = {"data.path": str(path), "data.batch_size": "4", **changes}
    return experiment.parse(apply_overrides(load(name), overrides))


def start(monkeypatch, settings, workdir):
    """What the command does, with a moment of no training: one step, saved, if the loop would let it."""

    def train(task, loader, config, workdir, *, resolved_config, model_keys, **others):
        with Checkpoints(workdir, 1) as checkpoints:
            if checkpoints.latest is not None:
                return check_config(workdir, resolved_config, model_keys)
            others["on_start"]()
            nothing = TrainState(jnp.zeros(()), {"model": {"a": jnp.zeros(2)}}, {}, {}, {}, jnp.zeros(2))
            checkpoints.save(nothing, 0, Clock(), resolved_config)
        return []

    module = {"autoencoder": stage1, "diffusion": stage2}[settings.stage]
    monkeypatch.setattr(module, "train", train)
    run = stage1.train_autoencoder if settings.stage == "autoencoder" else stage2.train_diffusion
    return run(settings, workdir)


def rewrite_config(workdir, change):
    """Makes the config of a checkpoint another one, as if the run had saved that."""
    [stored] = (workdir / "checkpoints").glob("*/config/metadata")
    stored.write_text(change(stored.read_text()))
    checksums.write(epath.Path(stored.parents[1]), ITEMS)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_data_set_is_known_by_what_it_holds_and_not_by_where_it_lies(tmp_path, monkeypatch, data, stage):
    start(monkeypatch, make_experiment(stage, data[stage](0)), tmp_path / "run")
    moved = shutil.copytree(data[stage](0), tmp_path / "moved")
    [changed] = start(monkeypatch, make_experiment(stage, moved), tmp_path / "run")
    assert changed.startswith("data.path: ")
    with pytest.raises(ConfigError, match=r"holds a run of another config(.|\n)*data_checksum: '\w{64}' -> '\w{64}'"):
        start(monkeypatch, make_experiment(stage, data[stage](1)), tmp_path / "run")


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
@pytest.mark.parametrize(("key", "value"), [("data.seed", "3"), ("data.batch_size", "8")])
def test_another_order_of_the_data_is_refused(tmp_path, monkeypatch, data, stage, key, value):
    start(monkeypatch, make_experiment(stage, data[stage](0)), tmp_path)
    with pytest.raises(ConfigError, match=f"{key}: . -> {value}"):
        start(monkeypatch, make_experiment(stage, data[stage](0), **{key: value}), tmp_path)


def test_how_the_data_is_read_may_change(tmp_path, monkeypatch, data):
    start(monkeypatch, make_experiment("diffusion", data["diffusion"](0)), tmp_path)
    changes = {"data.workers": "2", "data.prefetch": "5"}
    changed = start(monkeypatch, make_experiment("diffusion", data["diffusion"](0), **changes), tmp_path)
    assert changed == ["data.prefetch: 2 -> 5", "data.workers: 0 -> 2"]


def test_a_run_of_the_other_stage_is_refused_with_the_difference(tmp_path, monkeypatch, data):
    for before, after in (("autoencoder", "diffusion"), ("diffusion", "autoencoder")):
        start(monkeypatch, make_experiment(before, data[before](0)), tmp_path / before)
        with pytest.raises(ConfigError, match=f"another config(.|\n)*stage: '{before}' -> '{after}'"):
            start(monkeypatch, make_experiment(after, data[after](0)), tmp_path / before)


def test_a_tokenizer_that_is_missing_is_named(tmp_path, monkeypatch, data):
    settings = make_experiment("diffusion", data["diffusion"](0))
    start(monkeypatch, settings, tmp_path)
    (tmp_path / "tokenizer.model").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{tmp_path}/tokenizer.model is missing, and the run .* cannot go on"):
        start(monkeypatch, settings, tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / "tokenizer.model")
    assert start(monkeypatch, settings, tmp_path) == []


def test_a_run_from_before_data_had_a_checksum_goes_on(tmp_path, monkeypatch, data):
    settings = make_experiment("diffusion", data["diffusion"](0))
    start(monkeypatch, settings, tmp_path)
    rewrite_config(tmp_path, lambda text: text.replace("data_checksum", "unknown_to_it"))
    assert any(line.startswith("data_checksum: (absent)") for line in start(monkeypatch, settings, tmp_path))


def test_a_latent_shape_that_does_not_fit_leaves_the_work_directory_free(tmp_path, data):
    settings = make_experiment("diffusion", data["diffusion"](0))
    wrong = dataclasses.replace(
        settings, transformer=dataclasses.replace(settings.transformer, latent_shape=(5, 16, 16))
    )
    with pytest.raises(
        ConfigError, match=r"are of 5x8x8 with 8 channels, but the model is for 5x16x16 .*latent_shape=5,8,8"
    ):
        experiment.train(to_config_dict(wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_clips_of_another_size_than_the_config_is_for_are_refused(tmp_path, data):
    settings = make_experiment("autoencoder", data["autoencoder"](0), clip_size="(17, 128, 128)")
    with pytest.raises(ConfigError, match=r"for clips of 17x128x128, but those in .* are 5x16x16"):
        experiment.train(to_config_dict(settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_run_records_where_it_comes_from_when_it_begins(tmp_path, monkeypatch, data, stage):
    def at_commit(commit):
        found = {"commit": commit, "packages": {"jax": "1.2.3"}}
        monkeypatch.setattr(provenance, "describe_environment", lambda: found)

    whole = data[stage](0).resolve()
    monkeypatch.chdir(whole.parent)
    at_commit("of the start")
    start(monkeypatch, make_experiment(stage, whole.name), tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    at_commit("of a later start")
    assert start(monkeypatch, make_experiment(stage, whole), tmp_path / "run") == []
    config = stored_config("run")
    assert config.data.path == str(whole) and config.data_fps == 15.0
    expected = {"recipe": "test", "clips": 8, "seed": 0, "commit": "of the start", "versions": {"jax": "1.2.3"}}
    assert card.training_of("run") == expected

    def older(text):
        config = json.loads(text)
        return json.dumps(config | {"init_from": {"path": "mini"}, "data": {**config["data"], "path": "gone"}})

    rewrite_config(tmp_path / "run", older)
    (tmp_path / "run" / "environment.json").unlink()
    started_from = {"bundle": "mini"} | {key: open_bundle("mini").card[key] for key in ("commit", "training")}
    assert card.training_of("run") == {"started_from": started_from}, "what nobody can tell any more is left out"
    assert card.training_of("mini") == started_from


def test_the_weights_a_run_starts_from_are_found_from_anywhere(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    settings = make_experiment("diffusion", data["diffusion"](0))
    for path, whole in (("mini", "mini"), ("runs/old", str(tmp_path.resolve() / "runs" / "old"))):
        assert resolved(dataclasses.replace(settings, init_from=InitRules(path))).init_from.path == whole


def test_a_bundle_without_an_autoencoder_is_named(tmp_path, data):
    write_bundle(Bundle({"transformer": Component({}, {})}), tmp_path / "bundle")
    settings = make_experiment("diffusion", data["diffusion"](0), autoencoder_path=str(tmp_path / "bundle"))
    with pytest.raises(BundleError, match=f"{tmp_path}/bundle holds no autoencoder but transformer"):
        stage2.train_diffusion(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bundle_is_refused_a_card_before_it_is_measured(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        card.describe(tmp_path / "bundle", tmp_path / "no footage")


def test_clips_in_place_of_latents_are_called_so(tmp_path, data):
    clips = data["autoencoder"](0)
    with pytest.raises(DatasetError, match="holds clips, not latents; make them with `walt prepare latents --input="):
        stage2.train_diffusion(make_experiment("diffusion", clips), tmp_path / "run")
