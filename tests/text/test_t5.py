"""T5 v1.1 from the files of Hugging Face's library: against what that library computed, stored here, and against itself where installed."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import command, convert
from walt.config import ConfigError
from walt.generation.bundle import read_bundle
from walt.text.encoder import TextEncoder
from walt.text.hugging_face import ModelFolderError
from walt.text.t5 import SIZES, read_t5, t5
from walt.text.tokenizer import Tokenizer
from walt.training.module import Functional, count_parameters

STORED = Path(__file__).parent / "data" / "t5"
"""A T5 v1.1 of random weights and what `transformers` made of `inputs`; `--update-golden` writes both anew where it is installed."""


def inputs(length=40):
    rng = np.random.default_rng(0)
    return rng.integers(3, 60, (3, length)), np.arange(length) < np.array([[length], [length - 13], [5]])


def encode(folder, dtype="float32"):
    config, params = read_t5(folder, dtype)
    model = Functional(lambda rngs: TextEncoder(config, rngs))
    ids, mask = inputs()
    return np.asarray(jax.jit(lambda p: model.bind(p)(jnp.asarray(ids), jnp.asarray(mask)))(params)), mask


def relative_error(found, expected, mask):
    return np.linalg.norm((found - expected)[mask]) / np.linalg.norm(expected[mask])


def write_reference(folder, seed=0):
    """Saves a random model and returns its output."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=64,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():  # nothing at its initial value, norms included
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.5) + ("norm" in name))
        ids, mask = inputs()
        output = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    model.save_pretrained(folder, safe_serialization=True)
    return output


def test_output_equals_what_the_reference_once_computed(request):
    if request.config.getoption("--update-golden"):
        shutil.rmtree(STORED, ignore_errors=True)
        np.save(STORED / "output.npy", write_reference(STORED))
    found, mask = encode(STORED)
    assert relative_error(found, np.load(STORED / "output.npy"), mask) < 1e-4


def test_output_equals_the_reference(tmp_path):
    expected = write_reference(tmp_path, seed=1)
    found, mask = encode(tmp_path)
    assert relative_error(found, expected, mask) < 1e-4


def test_bfloat16_is_close(tmp_path):
    found, mask = encode(STORED, "bfloat16")
    assert relative_error(found, np.load(STORED / "output.npy"), mask) < 0.05


@pytest.mark.parametrize(
    ("size", "millions"), [("small", 35.3), ("base", 109.6), ("large", 341.2), ("xl", 1223.5), ("xxl", 4762.3)]
)
def test_published_sizes(size, millions):
    assert set(SIZES) == {"small", "base", "large", "xl", "xxl"}
    model = Functional(lambda rngs: TextEncoder(t5(size), rngs))
    assert count_parameters(model.abstract_params) == pytest.approx(millions * 1e6, rel=0.01)
    with pytest.raises(ConfigError, match="there is no T5 'medium'"):
        t5("medium")


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "model"))


def test_a_bundle_of_it(copy, tmp_path, capsys):
    (copy / "spiece.model").write_bytes(Tokenizer.train(["a red ball", "a blue box moves"], 30).model_bytes)
    convert.main(["walt convert", "t5", f"--input={copy}", f"--output={tmp_path / 'bundle'}"])
    assert "text_encoder, float32" in capsys.readouterr().out
    bundle = read_bundle(tmp_path / "bundle")
    _, params = read_t5(copy)
    jax.tree.map(np.testing.assert_array_equal, bundle.components["text_encoder"].params, params)
    assert bundle.components["text_encoder"].config["width"] == 24 and bundle.tokenizer


def test_what_is_wrong_with_a_folder_is_said(copy, tmp_path):
    with pytest.raises(command.CommandError, match="--input is missing"):
        convert.main(["walt convert", "t5", "--output=out"])
    with pytest.raises(ModelFolderError, match=r"spiece\.model, the model's tokenizer, cannot be read"):
        convert.main(["walt convert", "t5", f"--input={copy}", f"--output={tmp_path / 'bundle'}"])
    config = json.loads((copy / "config.json").read_text())
    for change, message in (
        ({"feed_forward_proj": "relu"}, "version 1.0"),
        ({"model_type": "bert"}, "'bert' model, not of a 't5'"),
        ({"d_model": 32}, "has shape .* its config calls for"),
        ({"num_layers": 4}, r"no array encoder\.block\.3"),
        ({"d_kv": 0}, "describes no T5"),
        ({"num_layers": 2**40}, "num_layers must lie between 1 and 512"),
        ({"d_model": "24"}, "d_model must be int, got '24'"),
    ):
        (copy / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelFolderError, match=message):
            read_t5(copy)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelFolderError, match="cannot be read"):
        read_t5(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="holds neither"):
        read_t5(copy)


def test_weights_in_several_files(copy):
    from safetensors.numpy import load_file, save_file

    whole = load_file(copy / "model.safetensors")
    names = sorted(whole)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, copy / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, read_t5(copy)[1], read_t5(STORED)[1])
    for elsewhere in (f"../{copy.name}/a.safetensors", str(copy / "a.safetensors"), "..", "", "a\0", 5):
        weight_map = dict.fromkeys(index["weight_map"], elsewhere)
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ModelFolderError, match=r"the weights in .* cannot be read"):
            read_t5(copy)
