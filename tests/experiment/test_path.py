"""The whole path on a handful of clips: every shipped Task and model class takes steps, and what they leave can be used."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import walt
from walt import convert, experiment
from walt.config import ConfigError, apply_overrides, load, to_config_dict
from walt.data import records
from walt.data.loader import LatentLoader, LoaderConfig
from walt.data.media import decode_clip, encode_clip
from walt.experiment import ablation, latents, texts
from walt.experiment.text_encoders import t5_bundle
from walt.generation.bundle import BundleError, write_bundle
from walt.generation.pipeline import GenerationError, Pipeline
from walt.generation.sources import open_bundle
from walt.text.tokenizer import Tokenizer

GAMES = ("boxing", "freeway")
# The shipped shape, but for its width: what is tested is the path, and wide models take minutes of it.
NARROW = {
    "autoencoder": {
        "autoencoder.base_channels": "4",
        "autoencoder.groups": "4",
        "autoencoder.mid_blocks": "0",
        "autoencoder.channel_multipliers": "1,1",
        "autoencoder.strides": "((4, 2),)",
        "autoencoder.temporal_kernels": "1,3",
        "calibration_clips": "8",
    },
    "classes": {"transformer.width": "48", "transformer.depth": "2", "sampler.steps": "4"},
    "t2v": {"transformer.width": "48", "transformer.depth": "2", "sampler.steps": "4"},
}


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Clips of moving squares in place of a game: the recipe has tests of its own."""
    folder = tmp_path_factory.mktemp("data") / "footage"
    rng = np.random.default_rng(0)
    splits = {}
    with records.new_dataset(folder) as directory:
        for split, count in (("train", 12), ("heldout", 4)):
            with records.RecordWriter(directory, split) as writer:
                for index in range(count):
                    label = GAMES[index % 2]
                    video = np.full((17, 64, 64, 3), 60 + 100 * (index % 2), np.uint8)
                    for frame in range(17):
                        left = int(rng.integers(8)) + 2 * frame
                        video[frame, 20:30, left : left + 10] = 250
                    writer.write(
                        {
                            "id": f"{split}-{index}",
                            "clip": encode_clip(video),
                            "captions": [f"a game of {label}", f"{label} moves right"],
                            "label": label,
                            "fps": 15.0,
                        }
                    )
                splits[split] = writer.close()
        records.write_manifest(
            directory, records.Manifest("squares", splits, {"clip": (17, 64, 64, 3)}, 15.0, 0, {}, {})
        )
    return folder


@pytest.fixture(scope="module")
def autoencoder(footage):
    workdir = footage.parent / "autoencoder"
    train(config("autoencoder/atari:mini", footage), workdir)
    return workdir


@pytest.fixture(scope="module")
def encoded(footage, autoencoder):
    output = footage.parent / "latents"
    latents.prepare(autoencoder, footage, output)
    return output


@pytest.fixture(scope="module")
def transformer(encoded, autoencoder):
    workdir = encoded.parent / "transformer"
    extra = {"autoencoder_path": str(autoencoder), "samples_every": "2"}
    train(config("t2v/atari:mini", encoded, **extra), workdir)
    return workdir


def train(resolved, workdir):
    """On one device: eight simulated ones on two cores would take minutes, and the training room tests those."""
    return experiment.train(resolved, workdir, devices=jax.devices()[:1])


def config(name, data, **changes):
    overrides = {
        "data.path": str(data),
        "data.batch_size": "4",
        "training.num_steps": "2",
        "training.optimizer.warmup_steps": "1",
        "training.log_every": "1",
        **NARROW[name.partition("/")[0]],
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return apply_overrides(load(name), overrides)


def test_latents_are_normalised_and_hold_stills(encoded, autoencoder, footage):
    manifest = records.read_manifest(encoded)
    assert manifest.shapes == {"video": (5, 8, 8, 8), "images": (3, 8, 8, 8)}
    assert manifest.splits["train"].count == 12 and manifest.fps == 15.0
    source = records.RecordSource(encoded, "train")
    video = np.stack([np.frombuffer(source[i]["video"], np.float32).reshape(5, 8, 8, 8) for i in range(12)])
    np.testing.assert_allclose(video.mean((0, 1, 2, 3)), 0, atol=0.2)
    np.testing.assert_allclose(video.std((0, 1, 2, 3)), 1, atol=0.2)
    stills = np.frombuffer(source[3]["images"], np.float32).reshape(3, 8, 8, 8)
    clip = decode_clip(records.RecordSource(footage, "train")[3]["clip"])
    alone = Pipeline(open_bundle(autoencoder)).encode(clip[[0, 8, 16], None])[:, 0]
    np.testing.assert_allclose(stills, alone, atol=1e-4)  # the first one was taken from the video's latents


def test_latents_again_are_a_no_op_and_other_arguments_are_refused(encoded, autoencoder, footage, capsys):
    latents.prepare(autoencoder, footage, encoded)
    assert "already holds" in capsys.readouterr().out
    with pytest.raises(records.DatasetError, match="other arguments"):
        latents.prepare(autoencoder, footage, encoded, limit=4)


@pytest.mark.parametrize("stage", [1, 2])
def test_only_an_autoencoder_that_still_changes_is_refused(footage, tmp_path, monkeypatch, stage):
    """An unfinished run of stage 2 leaves its autoencoder as it found it."""
    bundle = open_bundle("mini")
    kept = {name: part for name, part in bundle.components.items() if stage == 2 or name == "autoencoder"}
    unfinished = dataclasses.replace(bundle, components=kept, card={"finished": False})
    monkeypatch.setattr(latents, "open_autoencoder", lambda path: unfinished)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="let its training finish" if stage == 1 else "file is a file"):
        latents.prepare("run", footage, tmp_path / "file")


@pytest.mark.slow
def test_a_model_of_classes_takes_their_names_for_prompts(encoded, autoencoder):
    workdir = encoded.parent / "classes"
    settings = config("classes/atari:mini", encoded, autoencoder_path=str(autoencoder), samples_every="0")
    with pytest.raises(ConfigError, match=r"num_classes is 8, but .* has 2 labels: 'boxing', 'freeway'"):
        train(settings, workdir)
    assert not workdir.exists()
    train(apply_overrides(settings, {"transformer.num_classes": "2"}), workdir)
    write_bundle(open_bundle(workdir), workdir.parent / "classes_bundle")
    pipeline = walt.load(workdir.parent / "classes_bundle")
    assert pipeline.class_names == GAMES
    assert pipeline.generate("freeway", steps=1, num_frames=1).shape == (1, 64, 64, 3)
    with pytest.raises(GenerationError, match="'boxin' is none of them; did you mean 'boxing'"):
        pipeline.generate("boxin")


@pytest.mark.slow
def test_a_published_text_encoder_is_used_and_stays_as_it_is(encoded, autoencoder, tmp_path):
    model = shutil.copytree(Path(__file__).parents[1] / "text" / "data" / "t5", tmp_path / "model")
    (model / "spiece.model").write_bytes(Tokenizer.train(["a game of boxing", "freeway moves right"], 40).model_bytes)
    encoder = t5_bundle(model)
    write_bundle(encoder, tmp_path / "t5")
    settings = config("t2v/atari:mini", encoded, autoencoder_path=str(autoencoder), samples_every="0")
    settings = apply_overrides(settings, {"text_encoder_path": str(tmp_path / "t5")})
    train(settings, tmp_path / "run")
    train(apply_overrides(settings, {"training.num_steps": "3"}), tmp_path / "run")
    made = open_bundle(tmp_path / "run")
    ours, theirs = (bundle.components["text_encoder"] for bundle in (made, encoder))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    assert made.tokenizer == encoder.tokenizer and made.components["transformer"].config["text_width"] == 24
    assert walt.load(tmp_path / "run").generate("a game of boxing", steps=1, num_frames=1).shape == (1, 64, 64, 3)
    # The same with captions that were embedded beforehand: the run holds no encoder, and its model has it all the same.
    length = settings.diffusion.caption_length
    texts.prepare(tmp_path / "t5", encoded, tmp_path / "embedded", length)
    train(
        apply_overrides(settings, {"data.path": str(tmp_path / "embedded"), "samples_every": "2"}),
        tmp_path / "beforehand",
    )
    again = open_bundle(tmp_path / "beforehand")
    jax.tree.map(np.testing.assert_array_equal, again.components["text_encoder"].params, theirs.params)
    assert again.tokenizer == encoder.tokenizer
    with pytest.raises(ConfigError, match=f"embedded with {length} tokens"):
        other = {"data.path": str(tmp_path / "embedded"), "diffusion.caption_length": "5", "data.caption_length": "5"}
        train(apply_overrides(settings, other), tmp_path / "other")
    with pytest.raises(BundleError, match="holds no text encoder with its tokenizer but autoencoder"):
        train(apply_overrides(settings, {"text_encoder_path": str(autoencoder)}), tmp_path / "other")


def test_a_part_of_the_clips(autoencoder, footage, tmp_path):
    manifest = latents.prepare(autoencoder, footage, tmp_path / "some", limit=5)
    assert manifest.splits["train"].count == 5 and manifest.splits["heldout"].count == 4


def test_workdir_generates(transformer, capsys):
    pipeline = walt.load(transformer)
    video = pipeline.generate("a game of boxing", num_frames=5, height=60, width=64, steps=2, seed=1)
    assert video.shape == (5, 60, 64, 3) and video.dtype == np.uint8
    assert "rounded up" in capsys.readouterr().out and pipeline.fps == 15.0
    np.testing.assert_array_equal(
        video, pipeline.generate("a game of boxing", num_frames=5, height=60, width=64, steps=2, seed=1)
    )


def test_metrics_and_sample_videos_are_logged(transformer):
    lines = [json.loads(line) for line in (transformer / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*lines)
    expected = {"loss", "learning_rate", "l2_grads", "l2_params", "l2_updates", "examples_per_second"}
    assert expected <= logged and {"tokens_per_second", "model_flops_per_second", "heldout/loss"} <= logged
    assert b"samples/videos" in b"".join(file.read_bytes() for file in (transformer / "tensorboard").iterdir())


@pytest.mark.slow
def test_a_mesh_changes_nothing_but_where_things_are_computed(transformer, encoded, autoencoder, tmp_path):
    """Rows, weights, and the rows of frames divided over eight devices: the losses of one device, and samples as well."""
    mesh = {f"training__mesh__{axis}": "2" for axis in ("data", "fsdp", "context")}
    resolved = config("t2v/atari:mini", encoded, autoencoder_path=str(autoencoder), **mesh)
    experiment.train(resolved, tmp_path / "run", devices=jax.devices())
    ours, theirs = (
        [
            record
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if "loss" in (record := json.loads(line))
        ]
        for folder in (tmp_path / "run", transformer)
    )
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs):
        for name in ("loss", "l2_grads", "l2_params"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4)


def test_a_mesh_that_does_not_divide_the_model_is_refused(encoded, autoencoder, tmp_path):
    mesh = {"training__mesh__data": "4", "training__mesh__tensor": "2"}
    resolved = config("t2v/atari:mini", encoded, autoencoder_path=str(autoencoder), **mesh)
    with pytest.raises(ConfigError, match=r"mesh.tensor is 2, which does not divide transformer.heads 3"):
        experiment.train(resolved, tmp_path / "run", devices=jax.devices())
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_leave_no_trace(encoded, autoencoder, tmp_path):
    resolved = config("t2v/atari:mini", encoded, autoencoder_path=str(autoencoder))
    resolved.init_from = {"path": "mini", "skip": ("text_encoder",)}
    with pytest.raises(ConfigError, match=r"the bundle does not fit the model[\s\S]*and \d+ more$"):
        train(resolved, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_model_is_refused_with_a_diff(transformer, encoded, autoencoder):
    before = sorted((path, path.stat().st_mtime_ns) for path in transformer.rglob("*"))
    changed = config("t2v/atari:mini", encoded, autoencoder_path=str(autoencoder), transformer__width="96")
    with pytest.raises(ConfigError, match=r"transformer\.width: 48 -> 96"):
        train(changed, transformer)
    assert sorted((path, path.stat().st_mtime_ns) for path in transformer.rglob("*")) == before


@pytest.mark.slow
def test_latents_of_another_autoencoder_are_refused(encoded, autoencoder, footage, tmp_path):
    other = tmp_path / "other"
    train(config("autoencoder/atari:mini", footage, training__seed="5"), other)
    with pytest.raises(records.DatasetError, match="encode the clips again"):
        train(config("t2v/atari:mini", encoded, autoencoder_path=str(other)), tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()


@pytest.mark.slow
def test_starting_from_a_bundle_keeps_its_weights(autoencoder, footage, tmp_path):
    base = experiment.parse(config("autoencoder/atari:mini", footage, training__optimizer__learning_rate="1e-12"))
    tuned = dataclasses.replace(base, init_from=experiment.InitRules(str(autoencoder)))
    train(to_config_dict(tuned), tmp_path / "tuned")
    clip = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    ours, theirs = walt.load(tmp_path / "tuned"), walt.load(autoencoder)
    assert np.abs(ours.reconstruct(clip).astype(int) - theirs.reconstruct(clip)).max() <= 1


@pytest.mark.slow
def test_super_resolution_trains_on_two_resolutions_and_makes_videos_larger(autoencoder, footage, tmp_path):
    manifest = latents.prepare(autoencoder, footage, tmp_path / "latents", limit=4, low_resolution=2)
    assert manifest.shapes["low_video"] == (5, 4, 4, 8) and manifest.shapes["low_images"] == (3, 4, 4, 8)
    settings = config("t2v/super_atari:mini", tmp_path / "latents", autoencoder_path=str(autoencoder))
    settings.transformer.latent_shape, settings.samples_every = (5, 8, 8), 2
    train(settings, tmp_path / "run")
    assert b"samples/videos" in b"".join(file.read_bytes() for file in (tmp_path / "run" / "tensorboard").iterdir())
    pipeline = walt.load(tmp_path / "run")
    small = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), np.uint8)
    assert pipeline.generate("a game of boxing", low_resolution=small, steps=1, num_frames=1).shape == (1, 64, 64, 3)
    with pytest.raises(ConfigError, match="sample_prompts must be empty"):
        train(apply_overrides(settings, {"sample_prompts": "('boxing',)"}), tmp_path / "other")
    with pytest.raises(
        ConfigError, match="low_resolution is 3, but clips of 64x64 can be made 1, 2, 4, 8 times smaller"
    ):
        latents.prepare(autoencoder, footage, tmp_path / "third", low_resolution=3)


def test_both_resolutions_of_a_batch_are_of_the_same_clips_and_stills(autoencoder, footage, tmp_path):
    latents.prepare(autoencoder, footage, tmp_path / "latents", low_resolution=2)
    loader = LatentLoader(
        LoaderConfig(path=str(tmp_path / "latents"), batch_size=4, image_fraction=0.5), None, low_resolution=True
    )
    batch = loader.batch(0)
    source = records.RecordSource(tmp_path / "latents", "train")
    pairs = {}
    for record in (source[index] for index in range(len(source))):
        for name in ("video", "images"):
            large, small = (np.frombuffer(record[key], np.float32) for key in (name, f"low_{name}"))
            frames = len(large) // (8 * 8 * 8)
            for a, b in zip(large.reshape(frames, 8, 8, 8), small.reshape(frames, 4, 4, 8), strict=True):
                pairs[a.tobytes()] = b
    for row in range(4):
        for large, small in zip(batch["latents"][row], batch["low_resolution"][row], strict=True):
            np.testing.assert_array_equal(small, pairs[large.tobytes()])
    alone = Pipeline(open_bundle(autoencoder)).encode(
        latents.smaller(decode_clip(records.RecordSource(footage, "train")[0]["clip"])[None], 2)
    )
    np.testing.assert_allclose(np.frombuffer(source[0]["low_video"], np.float32), alone.ravel(), atol=1e-4)
    assert latents.smaller(np.uint8([[[[[0] * 3, [4] * 3], [[8] * 3, [9] * 3]]]]), 2).item(0) == 5


def test_raw_latents_are_what_the_encoder_makes(encoded, autoencoder, footage, tmp_path):
    """As `walt convert export --latents=raw`: a bundle whose latents are not normalised, which `prepare` takes for finished."""
    convert.main(
        ["walt convert", "export", f"--workdir={autoencoder}", f"--output={tmp_path / 'raw'}", "--latents=raw"]
    )
    latents.prepare(tmp_path / "raw", footage, tmp_path / "latents", limit=2)
    raw, normal = (
        np.frombuffer(records.RecordSource(folder, "heldout")[0]["video"], np.float32).reshape(5, 8, 8, 8)
        for folder in (tmp_path / "latents", encoded)
    )
    statistics = open_bundle(autoencoder).components["autoencoder"].extra
    np.testing.assert_allclose(raw, normal * statistics["latent_std"] + statistics["latent_mean"], atol=1e-4)


@pytest.mark.slow
def test_a_run_of_the_study_of_ablations_is_measured(encoded, autoencoder, footage, tmp_path):
    extra = {
        "autoencoder_path": str(autoencoder),
        "transformer__num_classes": "2",
        "transformer__heads": "2",
        "data__batch_size": "8",
    }
    measure = ablation.Measure(footage, samples=2)
    found = ablation.run_and_measure(
        experiment.parse(config("classes/ablation", encoded, **extra)), tmp_path / "run", measure
    )
    assert {"loss", *ablation.BUCKETS, "frechet", "prompt_accuracy", "motion_ratio", "diversity_ratio"} <= set(found)
    assert found["frechet"] > measure.floor()["frechet"] > 0  # two steps make noise
