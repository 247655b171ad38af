"""The layers against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.autoencoder import layers


@settings(max_examples=8)
@given(
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    strides=st.tuples(*[st.integers(1, 2)] * 3),
    size=st.tuples(*[st.integers(4, 7)] * 3),
)
def test_gathered_taps_equal_the_native_convolution_with_gradients(kernel, strides, size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*kernel, 3, 5)), jnp.float32)

    def loss(function):
        return lambda x, w: jnp.sum(jnp.sin(function(x, w, strides)))

    np.testing.assert_allclose(
        layers._convolve_taps(x, w, strides), layers._convolve_native(x, w, strides), rtol=2e-4, atol=2e-4
    )
    ours = jax.grad(loss(layers._convolve_taps), (0, 1))(x, w)
    theirs = jax.grad(loss(layers._convolve_native), (0, 1))(x, w)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 2)])
def test_second_derivatives_agree_with_finite_differences(strides):
    """R1 differentiates a gradient: along a random direction its slope is what two nearby kernels say."""
    with jax.enable_x64(True):
        x, kernel, direction = (
            jax.random.normal(jax.random.key(seed), shape, jnp.float64)
            for seed, shape in enumerate([(1, 5, 5, 5, 2), (3, 3, 3, 2, 2), (3, 3, 3, 2, 2)])
        )

        @jax.jit
        def r1(distance):
            moved = kernel + distance * direction
            slope = jax.grad(lambda x: jnp.sin(layers.convolve(x, moved, strides)).sum())(x)
            return jnp.square(slope).sum()

        nearby = (r1(1e-5) - r1(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(r1))(0.0), nearby, rtol=1e-6)


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
