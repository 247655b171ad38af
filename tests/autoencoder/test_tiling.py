"""Tiles: exact where one covers the frame, close where several do, and every position counted once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import walt
from walt.autoencoder import Autoencoder, AutoencoderConfig, Tiling, stream_decode, stream_encode
from walt.autoencoder.tiling import tiled
from walt.config import ConfigError


@given(st.integers(1, 40), st.integers(1, 60), st.data())
def test_tiles_cover_every_position_and_have_one_size(size, length, data):
    tiling = Tiling(size, data.draw(st.integers(0, size // 2)))
    covered = np.zeros(length)
    for start in tiling.starts(length):
        ramp = tiling.ramp(start, length)
        assert len(ramp) == min(size, length) and (ramp > 0).all()
        covered[start : start + size] += ramp
    assert (covered > 0).all()


@given(st.integers(2, 8), st.integers(1, 20), st.integers(1, 20))
def test_a_step_that_looks_at_single_positions_is_exact(size, height, width):
    chunk = np.random.default_rng(0).normal(size=(1, 2, 2 * height, 2 * width, 3)).astype(np.float32)
    seen = []

    def halve(piece, carry):
        seen.append(carry)
        return piece[:, :, ::2, ::2], (carry or 0) + 1

    step = tiled(halve, Tiling(size, size // 2), 2, 1)
    result, carry = step(chunk, None)
    np.testing.assert_allclose(result, chunk[:, :, ::2, ::2], rtol=1e-5, atol=1e-6)
    _, carry = step(chunk, carry)
    assert set(carry) == {2} and seen == [None] * len(carry) + [1] * len(carry), "every tile has a carry of its own"


def test_one_tile_is_the_whole():
    config = AutoencoderConfig(
        latent_channels=2,
        base_channels=2,
        channel_multipliers=(1, 1),
        res_blocks=1,
        mid_blocks=0,
        strides=((4, 2),),
        temporal_kernels=(1, 3),
        patchify=4,
        groups=1,
    )
    import flax.nnx as nnx

    model = nnx.jit(lambda: Autoencoder(config, nnx.Rngs(0)))()
    video = jax.random.uniform(jax.random.key(0), (1, 5, 16, 16, 3), minval=-1.0)
    whole, one = (jnp.concatenate(list(stream_encode(model, [video], t)), axis=1) for t in (None, Tiling(2, 1)))
    np.testing.assert_array_equal(whole, one)
    whole, one = (np.concatenate(list(stream_decode(model, [one], t)), axis=1) for t in (None, Tiling(2, 1)))
    np.testing.assert_array_equal(whole, one)


@pytest.mark.slow
def test_the_error_of_the_shipped_model_is_as_documented():
    """On a smooth moving pattern of 128x128: tiled against whole reconstructions, in dB (docstring of `Tiling`)."""
    t, y, x = np.meshgrid(np.arange(9), np.arange(128), np.arange(128), indexing="ij")
    waves = [np.sin(0.05 * x + 0.2 * t), np.cos(0.04 * y - 0.1 * t), np.sin(0.03 * (x + y))]
    video = np.uint8(127 + 100 * np.stack(waves, axis=-1))
    pipeline = walt.load("mini")
    whole = pipeline.reconstruct(video)
    pieces = np.concatenate(list(pipeline.reconstruct_stream([video], pipeline.tiling(64))))
    psnr = 10 * np.log10(255**2 / np.square(pieces.astype(float) - whole).mean())
    assert psnr == pytest.approx(22.1, abs=2)


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (4, 3, "between 0 and half of size 4"),
        (4, -1, "between 0 and half of size 4"),
        (0, 0, "tiling.size must be at least 1, got 0"),
    ],
)
def test_refuses(size, overlap, message):
    with pytest.raises(ConfigError, match=message):
        Tiling(size, overlap)
