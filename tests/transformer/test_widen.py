"""More input channels: the same predictions as long as they are zero."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.training.module import Functional
from walt.transformer.config import TransformerConfig
from walt.transformer.model import Transformer
from walt.transformer.widen import widen

OLD = TransformerConfig(
    latent_shape=(2, 4, 4),
    in_channels=2,
    out_channels=2,
    width=8,
    depth=2,
    heads=2,
    patch=2,
    spatial_window=(1, 2, 2),
    spacetime_window=(2, 2, 2),
    self_conditioning=False,
)
NEW = dataclasses.replace(OLD, in_channels=7, self_conditioning=True, canvas=True)


def test_an_empty_canvas_changes_nothing():
    old, new = (Functional(lambda rngs, config=config: Transformer(config, rngs)) for config in (OLD, NEW))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), old.abstract_params)
    wide = widen(params, OLD, NEW)
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, new.abstract_params)
    x = jnp.asarray(rng.normal(size=(3, 2, 4, 4, 2)), jnp.float32)
    t, still = jnp.full((3, 2), 300.0), jnp.array([False, True, False])
    predict = lambda model: jax.jit(lambda params, x: model.bind(params, {})(x, t, is_image=still))  # noqa: E731
    nothing = jnp.concatenate([x, jnp.zeros((3, 2, 4, 4, 5))], -1)
    np.testing.assert_allclose(predict(new)(wide, nothing), predict(old)(params, x), atol=1e-5)
    assert widen(wide, NEW, NEW)["patch_embedding"]["kernel"].shape == (28, 8)


def test_what_is_no_new_channel_is_refused():
    with pytest.raises(ConfigError, match=r"transformer.width is 16, but the trained model has 8"):
        widen({}, OLD, dataclasses.replace(NEW, width=16))
    with pytest.raises(ConfigError, match="has channels of self-conditioning, known, of their mask, which this transf"):
        widen({}, NEW, OLD)
