"""Where models come from: work directories of training runs, shipped names, bundles."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import walt
from walt import command, convert
from walt.config import ConfigError, to_config_dict
from walt.generation import sources
from walt.generation.bundle import BundleError, read_bundle, write_bundle
from walt.training.checkpoint import Checkpoints, Clock
from walt.training.folder import CheckpointError
from walt.training.state import TrainState

BALL = "a red ball moves left"


def save_checkpoint(workdir, params, extra, config):
    """A checkpoint as training leaves it, whose averaged weights are the given ones and whose raw weights are zero."""
    arrays = jax.tree.map(jnp.asarray, (params, extra))
    raw = jax.tree.map(jnp.zeros_like, arrays[0])
    moments = {group: {"count": jnp.zeros((), jnp.int32)} for group in params}
    state = TrainState(jnp.int32(7), raw, moments, arrays[0], arrays[1], jax.random.key(0))
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(state, 7, Clock(), ConfigDict(config), wait=True)


@pytest.fixture(scope="module")
def workdirs(tiny, tiny_bundle, tmp_path_factory):
    """(stage 1, stage 2): work directories that hold the tiny bundle's weights."""
    root = tmp_path_factory.mktemp("runs")
    parts = tiny_bundle.components
    autoencoder = to_config_dict(tiny.autoencoder)
    params = {"generator": parts["autoencoder"].params}
    save_checkpoint(root / "one", params, parts["autoencoder"].extra, {"autoencoder": autoencoder})
    config = {
        "autoencoder_path": str(root / "one"),
        "transformer": to_config_dict(tiny.transformer),
        "text": to_config_dict(tiny.text),
        "diffusion": to_config_dict(tiny.diffusion),
        "sampler": to_config_dict(tiny.sampler),
        "data_fps": 12.5,
    }
    params = {"model": {name: parts[name].params for name in ("transformer", "text_encoder")}}
    save_checkpoint(root / "two", params, {}, config)
    (root / "two" / "tokenizer.model").write_bytes(tiny.tokenizer)
    return root / "one", root / "two"


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_a_stage_2_workdir_is_the_whole_model(workdirs, tiny_bundle):
    bundle = sources.open_bundle(workdirs[1])
    for name, part in tiny_bundle.components.items():
        assert same(bundle.components[name].params, part.params)
        assert bundle.components[name].config == part.config
    assert same(bundle.components["autoencoder"].extra, tiny_bundle.components["autoencoder"].extra)
    assert bundle.tokenizer == tiny_bundle.tokenizer
    assert bundle.diffusion == tiny_bundle.diffusion and bundle.sampler == tiny_bundle.sampler
    assert bundle.card == {"step": 7, "weights": "ema", "finished": False, "fps": 12.5}
    assert walt.load(workdirs[1]).fps == 12.5


def test_raw_weights(workdirs):
    bundle = sources.open_bundle(workdirs[1], "raw")
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(bundle.components["transformer"].params))
    assert bundle.card["weights"] == "raw"


def test_a_stage_1_workdir_is_an_autoencoder(workdirs, tiny_bundle):
    bundle = sources.open_bundle(workdirs[0])
    assert list(bundle.components) == ["autoencoder"] and bundle.tokenizer is None
    assert "fps" not in bundle.card  # of a run that began before it was kept
    assert same(bundle.components["autoencoder"].extra, tiny_bundle.components["autoencoder"].extra)


def test_what_a_workdir_lacks_is_named(workdirs, tmp_path):
    one, two = workdirs
    tokenizer = two / "tokenizer.model"
    data = tokenizer.read_bytes()
    tokenizer.unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.model cannot be read"):
        sources.open_bundle(two)
    tokenizer.write_bytes(data)
    one.rename(tmp_path / "moved")
    with pytest.raises(BundleError, match=r"the autoencoder of .*two.* does not exist"):
        sources.open_bundle(two)
    (tmp_path / "moved").rename(one)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        sources.open_bundle(tmp_path)


def test_export_writes_a_bundle_that_generates_the_same(workdirs, tmp_path, capsys):
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"fps": 15, "trained_on": "nothing"}))
    output = tmp_path / "bundle"
    arguments = ["walt convert", "export", f"--workdir={workdirs[1]}", f"--output={output}"]
    convert.main([*arguments, f"--card={card}"])
    assert "wrote" in capsys.readouterr().out
    said = {"step": 7, "weights": "ema", "finished": False, "fps": 15, "trained_on": "nothing"}
    assert read_bundle(output).card == said
    exported, direct = walt.load(output), walt.load(workdirs[1])
    assert exported.fps == 15
    np.testing.assert_array_equal(exported.generate(BALL), direct.generate(BALL))
    convert.main([*arguments, "--dtype=float16"])
    assert walt.load(output).fps == 12.5
    assert (output / "transformer.safetensors").stat().st_size < 20_000


def test_a_model_for_wider_videos(tmp_path):
    (tmp_path / "wide.py").write_text(
        "import walt.config\n"
        "def get_config(variant=''):\n"
        "    config = walt.config.load('t2v/atari')\n"
        "    config.transformer.latent_shape = (5, 8, 14)\n"
        "    config.transformer.spatial_window, config.transformer.spacetime_window = (1, 4, 7), (5, 4, 7)\n"
        "    return config\n"
    )
    arguments = ["walt convert", "resize", f"--output={tmp_path / 'wide'}", f"--config={tmp_path / 'wide.py'}"]
    convert.main([*arguments, "--workdir=mini"])
    pipeline = walt.load(tmp_path / "wide")
    assert pipeline.video_size == (17, 64, 112)
    assert pipeline.generate("a game of Freeway", steps=1, num_frames=1).shape == (1, 64, 112, 3)
    with pytest.raises(command.CommandError, match="--workdir is missing"):
        convert.main(arguments)
    with pytest.raises(ConfigError, match="must be one of stage 2"):
        convert.main(["walt convert", "resize", "--workdir=mini", "--output=x", "--config=autoencoder/atari"])


def test_bad_export(workdirs, tmp_path):
    arguments = ["walt convert", "export", f"--workdir={workdirs[0]}", f"--output={tmp_path}/out"]
    for extra, message in [
        (["--weights=mean"], "ema or raw"),
        (["--dtype=int8"], "float32 or float16"),
        (["--card=/no"], "--card"),
    ]:
        with pytest.raises(command.CommandError, match=message):
            convert.main([*arguments, *extra])
    with pytest.raises(command.CommandError, match="what must be export"):
        convert.main(["walt convert", "import", *arguments[2:]])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        convert.main(arguments)
    assert (tmp_path / "out" / "notes").read_text() == "mine"


def test_the_file_of_a_card_is_tried_before_the_work(tmp_path):
    arguments = ["walt convert", "card", "--workdir=nowhere", "--real=nowhere"]
    with pytest.raises(command.CommandError, match="is a folder"):
        convert.main([*arguments, f"--output={tmp_path}"])


def test_shipped_names(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    assert sources.shipped_bundles() == []
    write_bundle(tiny_bundle, tmp_path / "mini")
    assert sources.shipped_bundles() == ["mini"]
    assert sources.open_bundle("mini").card == {"fps": 12.5}
    with pytest.raises(BundleError, match="maxi does not exist; shipped models: mini"):
        sources.open_bundle("maxi")
