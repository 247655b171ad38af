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


@pytest.mark.parametrize("kernel", [(3, 3, 3), (4, 1, 2)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_gradient_of_padding_is_that_of_jax(kernel, causal):
    """Of first and of second order; sides of a single position included."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 1, 4, 2)), jnp.float32)
    time, *space = (((k - 1) // 2, k // 2) for k in kernel)
    widths = ((0, 0), (kernel[0] - 1, 0) if causal else time, *space, (0, 0))
    forms = (lambda x: layers.pad_replicate(x, kernel, causal), lambda x: jnp.pad(x, widths, mode="edge"))
    cubes = [
        lambda x, pad=pad: jnp.sum(jnp.sin(pad(x)) * jnp.arange(pad(x).size).reshape(pad(x).shape)) for pad in forms
    ]
    np.testing.assert_array_equal(forms[0](x), forms[1](x))
    ours, theirs = (jax.grad(cube)(x) for cube in cubes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    ours, theirs = (jax.grad(lambda x, cube=cube: jnp.sum(jax.grad(cube)(x) ** 2) / 1e4)(x) for cube in cubes)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("mean", "spread"), [(2.0, 3.0), (0.0, 1e-2), (-30.0, 1.0)])
def test_group_norm_looks_at_one_frame_and_one_group(mean, spread):
    rng = np.random.default_rng(1)
    x = rng.normal(mean, spread, size=(2, 3, 4, 5, 6))
    y = layers.GroupNorm(6, 2)(jnp.asarray(x, jnp.float32))
    grouped = x.reshape(2, 3, 20, 2, 3)
    expected = (grouped - grouped.mean((2, 4), keepdims=True)) / np.sqrt(grouped.var((2, 4), keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-4 if abs(mean) < 10 * spread else 1e-3)


def test_depth_to_space_inverts_space_to_depth():
    x = jax.random.normal(jax.random.key(0), (2, 3, 8, 12, 5))
    np.testing.assert_array_equal(layers.depth_to_space(layers.space_to_depth(x, 4), 1, 4), x)


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (3, 5), (5, 9)])
def test_upsampling_in_time_keeps_the_first_frame_single(frames, expected):
    x = jnp.arange(float(frames))[None, :, None, None, None] * jnp.ones((1, frames, 1, 1, 2))
    y = layers.depth_to_space(x, 2, 1)
    assert y.shape == (1, expected, 1, 1, 1)
    np.testing.assert_array_equal(y.ravel(), [0, *np.repeat(np.arange(1, frames), 2)])
