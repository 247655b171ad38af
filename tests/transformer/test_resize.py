"""A trained transformer at another size."""

import dataclasses

import jax
import numpy as np
import pytest

from walt.config import ConfigError
from walt.training.module import Functional
from walt.transformer import Transformer
from walt.transformer.resize import resize

SQUARE = {"latent_shape": (3, 4, 4), "spatial_window": (1, 4, 4), "spacetime_window": (3, 2, 2)}
WIDE = {"latent_shape": (3, 4, 7), "spatial_window": (1, 4, 7), "spacetime_window": (3, 2, 4)}


@pytest.fixture
def trained(small_config):
    model = Functional(lambda rngs: Transformer(small_config(**SQUARE), rngs))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), model.abstract_params)


def test_the_same_size_changes_nothing(small_config, trained):
    config = small_config(**SQUARE)
    jax.tree.map(np.testing.assert_array_equal, resize(trained, config, config), trained)


def test_tables_are_interpolated_and_all_else_is_kept(small_config, trained, small_inputs):
    old, new = small_config(**SQUARE), small_config(**WIDE)
    found = resize(trained, old, new)
    model = Functional(lambda rngs: Transformer(new, rngs))
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda leaf: leaf.shape, model.abstract_params)
    spatial, before = found["position"]["spatial"], trained["position"]["spatial"]
    np.testing.assert_allclose(spatial[:, ::2], before, rtol=1e-6)  # 4 -> 7: every second place is an old one
    np.testing.assert_allclose(spatial[:, 1], (before[:, 0] + before[:, 1]) / 2, rtol=1e-5)
    np.testing.assert_array_equal(found["position"]["temporal"], trained["position"]["temporal"])
    bias, old_bias = (tree["blocks"]["spacetime"]["attention"]["relative_bias"]["table"] for tree in (found, trained))
    assert bias.shape[2:] == (5, 3, 7) and old_bias.shape[2:] == (5, 3, 3)
    np.testing.assert_allclose(bias[..., ::3], old_bias, rtol=1e-5)  # offsets -1, 0, 1 become -3, 0, 3
    np.testing.assert_array_equal(found["final"]["projection"]["kernel"], trained["final"]["projection"]["kernel"])
    assert trained["position"]["spatial"].shape == (4, 4, 16), "what was given is left as it was"
    out = jax.jit(lambda p, inputs: model.bind(p)(**inputs))(found, small_inputs(new))
    assert out.shape == (2, 3, 4, 7, 2) and np.all(np.isfinite(out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 32}, "width is 32, but the trained model has 16; only latent_shape"),
        ({"spacetime_window": None}, "cannot be given any, nor lose them"),
    ],
)
def test_what_is_another_model_is_refused(small_config, trained, change, message):
    old = small_config(**SQUARE)
    with pytest.raises(ConfigError, match=message):
        resize(trained, old, dataclasses.replace(old, **change))


def test_a_table_of_one_entry(small_config):
    one = small_config(**{**SQUARE, "latent_shape": (1, 4, 4), "spacetime_window": (1, 2, 2)})
    params = Functional(lambda rngs: Transformer(one, rngs)).init(jax.random.key(0))[0]
    found = resize(params, one, small_config(**SQUARE))
    temporal = found["position"]["temporal"]
    assert temporal.shape == (3, 16)
    np.testing.assert_array_equal(temporal, np.broadcast_to(params["position"]["temporal"], (3, 16)))


def test_a_table_that_was_larger_than_its_grid_gives_what_was_trained(small_config):
    """A window of 1x16x16 on frames of 4x4 trains offsets -3 to 3; on 7x7 these are stretched to -6 to 6."""
    large = {"spatial_window": (1, 16, 16), "spacetime_window": (3, 2, 2)}
    old, new = (small_config(**large, latent_shape=shape) for shape in ((3, 4, 4), (3, 7, 7)))
    model = Functional(lambda rngs: Transformer(old, rngs))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, np.float32), model.abstract_params)
    table = params["blocks"]["spatial"]["attention"]["relative_bias"]["table"]
    trained = np.random.default_rng(0).normal(size=(*table.shape[:3], 7, 7)).astype(np.float32)
    table[..., 12:19, 12:19] = trained
    found = resize(params, old, new)["blocks"]["spatial"]["attention"]["relative_bias"]["table"]
    assert found.shape == table.shape
    np.testing.assert_allclose(found[..., 9:22:2, 9:22:2], trained, rtol=1e-5)
    np.testing.assert_array_equal(found[..., 0, 0], found[..., 9, 9])
    assert np.isfinite(found).all()
