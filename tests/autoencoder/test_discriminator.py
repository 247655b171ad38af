"""The critic: its published size, its blur, and that it sees every frame."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from walt.autoencoder.config import DiscriminatorConfig
from walt.autoencoder.discriminator import Discriminator, blur_pool
from walt.config import ConfigError
from walt.training.module import Functional, count_parameters

TINY = DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2, 2))


def test_published_parameter_count():
    model = Functional(lambda rngs: Discriminator(DiscriminatorConfig(), (17, 128, 128), rngs))
    assert count_parameters(model.abstract_params) == pytest.approx(61.3e6, rel=0.01)


@pytest.mark.parametrize("size", [(5, 8, 7), (1, 4, 6), (2, 1, 3)])
def test_blur_pool_is_a_binomial_blur_at_every_other_position(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    blurred = x
    for axis in (1, 2, 3):
        blurred = ndimage.correlate1d(blurred, np.array([1, 2, 1]) / 4, axis=axis, mode="nearest")
        offset = 1 - blurred.shape[axis] % 2  # even sizes are padded behind only, so windows centre on odd positions
        blurred = np.take(blurred, np.arange(offset, blurred.shape[axis], 2), axis=axis)
    np.testing.assert_allclose(blur_pool(jnp.asarray(x)), blurred, atol=1e-6)


@pytest.mark.parametrize("clip_shape", [(5, 16, 16), pytest.param((1, 16, 8), marks=pytest.mark.slow)])
def test_every_frame_moves_the_logit(clip_shape):
    model = Functional(lambda rngs: Discriminator(TINY, clip_shape, rngs))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    video = jax.random.uniform(jax.random.key(1), (2, *clip_shape, 3))
    logits, gradient = jax.jit(
        lambda video: (model.bind(params)(video), jax.grad(lambda v: model.bind(params)(v).sum())(video))
    )(video)
    assert logits.shape == (2,) and logits.dtype == jnp.float32
    assert np.abs(gradient).max(axis=(2, 3, 4)).min() > 0


def test_refuses_channels():
    with pytest.raises(ConfigError, match="must be positive"):
        DiscriminatorConfig(channel_multipliers=(1, 0))
