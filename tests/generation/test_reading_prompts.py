"""Weights on words, and embeddings that are kept."""

import jax
import numpy as np
import pytest

from walt.generation import programs, prompts
from walt.generation.pipeline import Pipeline
from walt.generation.request import GenerationError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh

ONE_DEVICE = make_mesh(MeshConfig(), jax.devices()[:1])
BALL = "a red ball moves left"


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    return Pipeline(tiny_bundle, ONE_DEVICE)


@pytest.fixture(scope="module")
def read(pipeline):
    return pipeline._read_prompts


def test_weight_one_changes_nothing_and_others_do(pipeline):
    plain = pipeline.generate(BALL, seed=3)
    np.testing.assert_array_equal(pipeline.generate("a (red ball:1) moves (left:1.0)", seed=3), plain)
    for weight in ("0", "0.5", "2"):
        assert not np.array_equal(pipeline.generate(f"a (red ball:{weight}) moves left", seed=3), plain)


def test_a_weight_scales_what_sets_a_token_apart_from_no_text(read, tiny_bundle):
    plain, heavy, silent = (read([text], "prompt") for text in ("a red ball", "a (red:2) ball", "(a red ball:0)"))
    null = tiny_bundle.components["transformer"].params["text"]["null_text"]
    spans = read._tokenizer.spans("a red ball")
    for token, (_, end) in enumerate(spans[:-1]):
        weight = 2 if 1 < end <= 5 else 1
        expected = null + weight * (plain.embeddings[0, token] - null)
        np.testing.assert_allclose(heavy.embeddings[0, token], expected, atol=1e-5)
        np.testing.assert_allclose(silent.embeddings[0, token], null, atol=1e-5)
    np.testing.assert_array_equal(heavy.embeddings[0, len(spans) - 1], plain.embeddings[0, len(spans) - 1])
    np.testing.assert_array_equal(heavy.mask, plain.mask)


def test_a_prompt_is_embedded_once_and_never_otherwise_in_other_company(pipeline, tiny_bundle, monkeypatch):
    first = pipeline.generate(BALL, seed=1)
    calls, embed = [], programs.embed
    monkeypatch.setattr(programs, "embed", lambda *arguments: calls.append(1) or embed(*arguments))
    np.testing.assert_array_equal(pipeline.generate(BALL, seed=1), first)
    assert not calls
    fresh = Pipeline(tiny_bundle, ONE_DEVICE)
    fresh.generate(["a box", BALL, "a box", "the green paddle waits"], negative_prompt="a box")
    assert len(calls) == 3
    np.testing.assert_array_equal(fresh.generate(BALL, seed=1), first)
    assert len(calls) == 3


def test_the_oldest_embeddings_are_forgotten(tiny_bundle, monkeypatch):
    monkeypatch.setattr(prompts, "CACHED", 2)
    read = Pipeline(tiny_bundle)._read_prompts
    for text in ("a", "b", "a", "c"):
        read([text], "prompt")
    assert list(read._kept) == ["a", "c"]
    assert len(read(["a", "b", "c", "d"], "prompt").mask) == 4 and len(read._kept) == 2


def test_lost_words_are_named_and_bad_weights_refused(pipeline, capsys):
    pipeline.generate("a red ball moves left and a blue box moves right and the green paddle waits")
    printed = capsys.readouterr().out
    assert "longer than the 16 tokens" in printed and "green paddle waits'" in printed
    with pytest.raises(GenerationError, match=r"negative_prompt: '\(ball:9\)' has a weight out of range"):
        pipeline.generate(BALL, negative_prompt="a (ball:9)")


def test_a_video_is_that_of_its_number(pipeline):
    together = pipeline.generate(["a box", BALL], seed=5)
    assert np.abs(pipeline.generate(BALL, seed=5, numbers=[1]).astype(int) - together[1]).max() <= 1
    assert np.abs(pipeline.generate(BALL, seed=5).astype(int) - together[1]).max() > 1
    with pytest.raises(GenerationError, match="numbers must be"):
        pipeline.generate(BALL, numbers=[-1])
