"""A video in chunks gives what the whole gives, whatever the chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.autoencoder import Autoencoder, AutoencoderConfig, stream_decode, stream_encode

SMALL = AutoencoderConfig(
    latent_channels=4, base_channels=4, channel_multipliers=(1, 2, 2, 2), res_blocks=1, mid_blocks=1, groups=2
)
CONFIGS = {
    "published shape": SMALL,
    "kernels of 4": dataclasses.replace(SMALL, down_kernel=4),
    "patchified": dataclasses.replace(
        SMALL, patchify=4, channel_multipliers=(1, 2, 2), strides=((2, 2), (2, 1)), temporal_kernels=(1, 1, 3)
    ),
}
FRAMES = 21


def build(config):
    model = nnx.jit(lambda: Autoencoder(config, nnx.Rngs(0)))()
    model.latent_mean[...], model.latent_std[...] = jnp.full(4, 0.3), jnp.full(4, 1.7)
    video = jax.random.uniform(jax.random.key(1), (2, FRAMES, 16, 8, 3), minval=-1.0)
    latents = nnx.jit(lambda model, video: model.encode(video))(model, video)
    return model, video, latents, nnx.jit(lambda model, latents: model.decode(latents))(model, latents)


SLOW = {"published shape": (pytest.mark.slow,), "kernels of 4": (pytest.mark.slow,)}


@pytest.fixture(scope="module", params=[pytest.param(c, marks=SLOW.get(n, ()), id=n) for n, c in CONFIGS.items()])
def whole(request):
    return build(request.param)


@pytest.fixture(scope="module")
def patchified():
    return build(CONFIGS["patchified"])


def assert_equal(streamed, whole):
    """Within 1e-5 of the size of the values: an untrained decoder leaves [-1, 1]."""
    streamed = jnp.concatenate(list(streamed), axis=1)
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=1e-5 * max(1.0, float(jnp.abs(whole).max())))


def cut(array, sizes):
    """`array` in pieces along time; what `sizes` leave over is the last piece."""
    ends = np.minimum(np.cumsum(sizes), array.shape[1])
    return [piece for piece in np.split(np.asarray(array), ends, axis=1)]


@pytest.mark.parametrize("sizes", [[5, 8], [1, 4, 4, 4]])
def test_chunks_equal_the_whole(whole, sizes):
    model, video, latents, decoded = whole
    assert_equal(stream_encode(model, cut(video, sizes)), latents)
    assert_equal(stream_decode(model, cut(latents, sizes[:2])), decoded)


@settings(max_examples=12)
@given(st.lists(st.integers(0, FRAMES), max_size=8))
def test_any_chunks_equal_the_whole(patchified, sizes):
    model, video, latents, decoded = patchified
    assert_equal(stream_encode(model, cut(video, sizes)), latents)
    assert_equal(stream_decode(model, cut(latents, sizes)), decoded)


def test_a_latent_frame_comes_out_as_soon_as_its_frames_are_in(patchified):
    model, video, *_ = patchified
    seen = []

    def frames():
        for index in range(9):
            seen.append(index)
            yield video[:, index : index + 1]

    arrived = [(piece.shape[1], len(seen)) for piece in stream_encode(model, frames())]
    assert arrived == [(1, 1), (1, 5), (1, 9)]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no frame"),
        ([(1, 0, 8, 8, 3)], "no frame"),
        ([(1, 4, 8, 8, 3)], "ends 3 frames after a multiple of 4; it must have 1 \\+ 4k"),
        ([(1, 5, 8, 8, 3), (1, 4, 16, 8, 3)], "differ in their length alone"),
        ([(1, 5, 12, 8, 3)], "height of 12 does not fit"),
        ([(1, 5, 8, 8, 4)], "batch, time, height, width, 3"),
    ],
)
def test_refuses(patchified, chunks, message):
    with pytest.raises(ValueError, match=message):
        list(stream_encode(patchified[0], [jnp.zeros(shape) for shape in chunks]))


def test_refuses_latents_of_another_model(patchified):
    with pytest.raises(ValueError, match="width, 4\\], got"):
        list(stream_decode(patchified[0], [jnp.zeros((1, 2, 2, 2, 8))]))
