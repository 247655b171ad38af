"""The layers against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder import layers


def test_padding_repeats_the_border_in_the_past_only():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    np.testing.assert_array_equal(layers.pad_replicate(x, (3, 1, 1)).ravel(), [0, 0, 0, 1, 2])
    row = jnp.arange(3.0).reshape(1, 1, 1, 3, 1)
    np.testing.assert_array_equal(layers.pad_replicate(row, (1, 1, 3)).ravel(), [0, 0, 1, 2, 2])
    np.testing.assert_array_equal(layers.pad_replicate(row, (1, 1, 4)).ravel(), [0, 0, 1, 2, 2, 2])


def test_group_norm_looks_at_one_frame_and_one_group():
    rng = np.random.default_rng(1)
    x = rng.normal(2.0, 3.0, size=(2, 3, 4, 5, 6))
    y = layers.GroupNorm(6, 2)(jnp.asarray(x, jnp.float32))
    grouped = x.reshape(2, 3, 20, 2, 3)
    expected = (grouped - grouped.mean((2, 4), keepdims=True)) / np.sqrt(grouped.var((2, 4), keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-4)


def test_depth_to_space_inverts_space_to_depth():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 12, 5))
    np.testing.assert_array_equal(layers.depth_to_space(layers.space_to_depth(x, 4), 1, 4), x)


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (3, 5), (5, 9)])
def test_upsampling_in_time_keeps_the_first_frame_single(frames, expected):
    x = jnp.arange(float(frames))[None, :, None, None, None] * jnp.ones((1, frames, 1, 1, 2))
    y = layers.depth_to_space(x, 2, 1)
    assert y.shape == (1, expected, 1, 1, 1)
    np.testing.assert_array_equal(y.ravel(), [0, *np.repeat(np.arange(1, frames), 2)])
