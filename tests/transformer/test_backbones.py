"""DiT and U-ViT as configs of the same blocks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.transformer import Transformer
from walt.transformer.blocks import Context
from walt.transformer.model import sines

FULL = {
    "spatial_window": (1, 4, 4),
    "spacetime_window": None,
    "relative_bias": False,
    "qk_norm": False,
    "self_conditioning": False,
    "in_channels": 2,
    "num_classes": 5,
    "text_width": None,
}
DIT = {**FULL, "adaln": "separate", "position": "sincos"}
UVIT = {**FULL, "adaln": "none", "long_skips": True, "depth": 5}


@pytest.fixture(params=[DIT, UVIT, {**UVIT, "text_width": 6}], ids=["DiT", "U-ViT", "U-ViT with text"])
def fields(request):
    return request.param


def labelled(inputs, config):
    frames = config.latent_shape[0]
    return {**inputs, "class_label": jnp.arange(2)[:, None] + jnp.zeros((2, frames), jnp.int32)}


def test_frames_read_their_own_conditions_and_nothing_of_each_other(fields, small_transformer, small_inputs):
    model = small_transformer(**fields)
    inputs = labelled(small_inputs(model.config), model.config)
    run = partial(jax.jit(lambda model, inputs: model(**inputs)), model)
    before = run(inputs)
    assert before.shape == (2, 3, 4, 4, 2) and np.std(before) > 1e-3
    changes = {
        "latents": inputs["latents"].at[1, 1, 2, 3].add(1.0),
        "timestep": inputs["timestep"].at[1, 1].add(200.0),
        "class_label": inputs["class_label"].at[1, 1].set(4),
    }
    if model.config.text_width:
        changes["text_embeddings"] = inputs["text_embeddings"].at[1, 1, 0].add(1.0)
    for name, value in changes.items():
        moved = np.abs(run({**inputs, name: value}) - before).max((2, 3, 4)) > 1e-6
        np.testing.assert_array_equal(moved, [[False] * 3, [False, True, False]], err_msg=name)
        everywhere = np.abs(run({**inputs, name: value}) - before)[1, 1].max(-1)
        assert np.all(everywhere > 0), name  # attention is over the whole frame


def test_padded_text_is_the_null_text(small_transformer, small_inputs):
    model = small_transformer(**{**UVIT, "text_width": 6})
    inputs = labelled(small_inputs(model.config), model.config)
    run = partial(jax.jit(lambda model, inputs: model(**inputs)), model)
    noise = jnp.where(inputs["text_mask"][..., None], inputs["text_embeddings"], 7.0)
    np.testing.assert_allclose(run({**inputs, "text_embeddings": noise}), run(inputs), atol=1e-5)


def test_dit_starts_as_the_identity(small_config):
    """AdaLN-Zero: with all gates shut, the last layer norm sees the embedded patches and their positions alone."""
    model = Transformer(small_config(**DIT), nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 16))
    context = model.conditioning(jnp.zeros((2, 3)), None, None)
    assert len(context) == 2
    found = model._run_blocks(x, Context(sum(context), None, jnp.zeros(2, bool), None, None))
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("depth", [3, 5])
def test_long_skips_join_outputs_from_the_outside_in(small_config, randomised, depth):
    """Against a loop over the blocks, one by one."""
    model = randomised(lambda rngs: Transformer(small_config(**{**UVIT, "depth": depth}), rngs), 0.2)
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 7, 16))
    context = Context(jnp.zeros((2, 3, 16)), None, jnp.zeros(2, bool), None, None)
    expected, kept = x, []
    for stack in (model.blocks, model.joining_blocks):
        graph, states = nnx.split(stack)
        for index in range(depth // 2 + (stack is model.blocks)):
            block = nnx.merge(graph, jax.tree.map(lambda a, i=index: a[i], states))
            if stack is model.blocks:
                expected = block(expected, context)
                kept.append(expected)
            else:
                expected = block(expected, context, kept[depth // 2 - 1 - index])
    np.testing.assert_allclose(jax.jit(model._run_blocks)(x, context), expected, atol=1e-4)


def test_pairs_may_have_long_skips_too(small_transformer, small_inputs):
    model = small_transformer(depth=6, long_skips=True)
    assert model.config.units == 3
    found = jax.jit(lambda model, inputs: model(**inputs))(model, small_inputs(model.config))
    assert np.all(np.isfinite(found))


def test_sines_of_positions_by_hand():
    found = np.asarray(sines(3, 4))
    angles = np.array([0, 1, 2])[:, None] * np.array([1.0, 0.01])
    np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-6)
    assert len({tuple(np.round(row, 4)) for row in found}) == 3
