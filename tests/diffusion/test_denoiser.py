"""The real denoiser, small, with weights that are nowhere zero."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.config import ConfigError
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.denoiser import Denoiser
from walt.diffusion.task import DiffusionTask
from walt.diffusion.text_to_latents import Text, text_to_latents
from walt.text.config import TextEncoderConfig
from walt.training.state import TrainState
from walt.transformer.config import TransformerConfig
from walt.transformer.flops import transformer_flops

TRANSFORMER = TransformerConfig(
    latent_shape=(2, 2, 2),
    in_channels=4,
    out_channels=2,
    width=8,
    depth=2,
    heads=2,
    spatial_window=(1, 2, 2),
    spacetime_window=(2, 2, 2),
    text_width=8,
)
TEXT = TextEncoderConfig(vocab_size=11, width=8, depth=1, heads=2, head_width=4, mlp_width=8)
DIFFUSION = DiffusionConfig(caption_length=5)
TASK = DiffusionTask(TRANSFORMER, TEXT, DIFFUSION)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    abstract = TASK.denoiser.abstract_params
    return jax.tree.map(lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), abstract)


def make_batch(rows=4):
    rng = np.random.default_rng(1)
    is_image = np.arange(rows) % 2 == 1
    mask = np.arange(5) < 3
    # A video row has one caption; the other slots are padding altogether.
    used = is_image[:, None, None] | (np.arange(2) == 0)[None, :, None]
    return {
        "latents": rng.normal(size=(rows, 2, 2, 2, 2)).astype(np.float32),
        "is_image": is_image,
        "caption_tokens": rng.integers(1, 11, (rows, 2, 5)).astype(np.int32) * (mask & used),
        "caption_mask": mask & used,
        "caption_index": np.where(is_image[:, None], np.arange(2), 0).astype(np.int32),
        "row": np.arange(rows, dtype=np.int32),
    }


def test_every_parameter_learns_and_empty_caption_slots_do_no_harm(params):
    """Gradients are finite and reach every array, the text encoder and the learned null text included."""
    state = TrainState(jnp.int32(0), {"model": params}, {}, {}, {}, jax.random.key(0))
    batch = {name: np.concatenate([value] * 4) for name, value in make_batch().items()} | {"row": np.arange(16)}
    grads, _, metrics = jax.jit(TASK.gradients)(state, batch, jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads["model"]):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_other_predictions_have_finite_losses_too(params):
    for change in ({"prediction": "x0"}, {"prediction": "noise", "zero_terminal_snr": False}):
        task = DiffusionTask(TRANSFORMER, TEXT, dataclasses.replace(DIFFUSION, **change))
        found = jax.jit(lambda p, b, t=task: t.eval_step({"model": p}, {}, b, jax.random.key(0)))(params, make_batch())
        assert 0 < found["loss"] < 100


def test_a_frozen_text_encoder_is_used_and_has_no_gradient(params):
    """The same losses as with the encoder among the parameters, of which it is none; and with captions it embedded beforehand."""
    frozen = DiffusionTask(TRANSFORMER, TEXT, DIFFUSION, text_source="frozen")
    weights, rest = {"text_encoder": params["text_encoder"]}, {"transformer": params["transformer"]}
    start, extra = jax.eval_shape(frozen.init, jax.random.key(0))
    assert jax.tree.structure((start["model"], extra)) == jax.tree.structure((rest, weights))
    key, batch = jax.random.key(0), make_batch()
    expected = jax.jit(TASK.row_losses)(params, {}, batch, key)
    run = jax.jit(frozen.row_losses)
    np.testing.assert_allclose(run(rest, weights, batch, key), expected, rtol=1e-5)
    assert np.abs(run(rest, jax.tree.map(jnp.zeros_like, weights), batch, key) - expected).max() > 1e-4
    prepared = DiffusionTask(TRANSFORMER, TEXT, DIFFUSION, text_source="prepared")
    tokens, mask = batch.pop("caption_tokens"), batch["caption_mask"]
    batch["text_embeddings"] = jax.jit(TASK.denoiser.bind(params).embed_text)(jnp.asarray(tokens), jnp.asarray(mask))
    assert batch.keys() == prepared.batch_spec().keys()
    np.testing.assert_allclose(jax.jit(prepared.row_losses)(rest, {}, batch, key), expected, rtol=1e-5)


def test_row_cost_counts_the_extra_pass_at_its_rate():
    forward = transformer_flops(TRANSFORMER, 5)
    assert TASK.row_cost().tokens == 8
    assert TASK.row_cost().flops == pytest.approx(3.9 * forward)
    without = DiffusionTask(TRANSFORMER, TEXT, dataclasses.replace(DIFFUSION, self_conditioning_rate=0.0))
    assert without.row_cost().flops == pytest.approx(3 * forward)


def test_text_to_latents(params):
    """Guidance 1 is the plain conditional sample, whether compiled in or traced; 0 is blind to the prompt."""
    tokens = np.array([[[3, 4, 5, 0, 0]], [[6, 7, 8, 9, 1]]], np.int32)
    embeddings = jax.jit(TASK.denoiser.bind(params).embed_text)(tokens, tokens > 0)
    captions = Text(embeddings[:, 0], (tokens > 0)[:, 0])
    keys = jax.random.split(jax.random.key(0), 2)

    def sample(captions, sampler, strength=None, negative=None):
        return text_to_latents(
            TASK.denoiser.bind(params),
            captions,
            keys,
            (2, 2, 2, 2),
            DIFFUSION,
            sampler,
            strength=strength,
            negative=negative,
        )

    plain = jax.jit(lambda captions: sample(captions, SamplerConfig(steps=3)))(captions)
    guided = jax.jit(lambda captions, strength, negative: sample(captions, SamplerConfig(steps=3), strength, negative))
    np.testing.assert_allclose(guided(captions, 1.0, captions), plain, rtol=1e-4, atol=1e-5)
    swapped = Text(*(array[::-1] for array in captions))
    blind = guided(captions, 0.0, captions)
    np.testing.assert_allclose(guided(swapped, 0.0, captions), blind, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(guided(swapped, 3.0, captions)) - blind).max() > 1e-3
    assert np.abs(np.asarray(plain[0]) - plain[1]).max() > 1e-2


@pytest.mark.parametrize(
    ("transformer", "text", "message"),
    [
        (dataclasses.replace(TRANSFORMER, text_width=16), TEXT, "text_width is 16, but the text encoder's width is 8"),
        (TRANSFORMER, None, "text_width is 8, but the text encoder's width is None"),
    ],
)
def test_configs_that_do_not_fit(transformer, text, message):
    with pytest.raises(ConfigError, match=message):
        nnx.eval_shape(lambda: Denoiser(transformer, text, nnx.Rngs(0)))
