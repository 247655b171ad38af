"""Passes answered from the one before."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.transformer.reuse import Kept, Reuse, run_reusing

VIDEO = np.array([0, 1, 0, 1])
changes = st.lists(st.lists(st.sampled_from([0.0, 0.02, -0.05, 0.3]), min_size=4, max_size=4), min_size=1, max_size=6)


@given(changes, st.sampled_from([1e-6, 0.06, 0.2]))
@settings(max_examples=15, deadline=None)
def test_rows_are_computed_anew_when_their_own_video_has_changed(changes, tolerance):
    """Against a loop that keeps its own books: the first unit adds `size`, the others the number of the pass."""
    x, kept = jnp.zeros((4, 3)), Kept(jnp.zeros((4, 3)), jnp.zeros((4, 3)))
    sizes, kept_size, kept_pass = np.ones(4), np.zeros(4), np.zeros(4)
    for number, change in enumerate(changes, 1):
        sizes = sizes * (1 + np.float64(change))
        run = lambda size, kept, number=number: run_reusing(  # noqa: E731
            Reuse(kept, tolerance, jnp.asarray(VIDEO)), x, lambda x: x + size[:, None], lambda y: y + number
        )
        z, kept = run(jnp.float32(sizes), kept)
        for video in (0, 1):
            rows = video == VIDEO
            if number == 1 or np.any(np.abs(sizes - kept_size)[rows] > tolerance * kept_size[rows]):
                kept_size[rows], kept_pass[rows] = sizes[rows], number
        np.testing.assert_allclose(z, np.repeat((sizes + kept_pass)[:, None], 3, axis=1), rtol=1e-5)


PLAIN = {"spatial_window": (1, 4, 4), "spacetime_window": None, "relative_bias": False, "qk_norm": False}
BACKBONES = {
    "W.A.L.T": {"text_width": None},
    "U-ViT with text": {**PLAIN, "adaln": "none", "long_skips": True, "depth": 5},
    "one unit": {"depth": 2, "text_width": None},
}


@pytest.mark.parametrize("fields", BACKBONES.values(), ids=BACKBONES)
def test_a_network_repeats_itself_where_nothing_is_new(fields, small_transformer, small_inputs):
    model = small_transformer(**fields)
    inputs, video = small_inputs(model.config), jnp.arange(2)
    run = partial(jax.jit(lambda model, kept, inputs: model.predict(**inputs, reuse=Reuse(kept, 0.05, video))), model)
    full = jax.jit(lambda model, inputs: model(**inputs))(model, inputs)
    value, kept = run(None, inputs)
    np.testing.assert_allclose(value, full, atol=1e-5)
    again, _ = run(kept, inputs)
    np.testing.assert_allclose(again, full, atol=1e-5)
    # One row sees other latents, and is computed anew; the other one takes what it is said to have kept.
    other = {**inputs, "latents": inputs["latents"].at[1].add(1.0)}
    expected = jax.jit(lambda model, inputs: model(**inputs))(model, other)
    forged = kept._replace(others=kept.others + np.float32(np.random.default_rng(0).normal(size=kept.others.shape)))
    value, kept = run(forged, other)
    np.testing.assert_allclose(value[1], expected[1], atol=1e-5)
    assert np.abs(value[0] - expected[0]).max() > 1e-2
    np.testing.assert_array_equal(kept.others[0], forged.others[0])
