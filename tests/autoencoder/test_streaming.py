"""A video in chunks gives what the whole gives, whatever the chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.autoencoder import Autoencoder, AutoencoderConfig, stream_decode, stream_encode, streaming

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
    model.decoder.head.kernel[...] /= 4  # a trained decoder stays within [-1, 1]; this one leaves it otherwise
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
    assert jnp.abs(whole).max() <= 1
    np.testing.assert_allclose(jnp.concatenate(list(streamed), axis=1), whole, rtol=0, atol=1e-5)


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


def test_compiles_no_more_than_four_programs_however_many_chunks(patchified):
    """The first frame, the rest of the first chunk, every whole chunk, and the last one."""
    model, *_ = patchified

    def programs(chunks):
        video = np.random.default_rng(0).uniform(-1, 1, (1, 12 * chunks + 1, 8, 8, 3)).astype(np.float32)
        latents = list(stream_encode(model, cut(video, [12] * chunks)))
        clips = list(stream_decode(model, cut(np.concatenate(latents, axis=1), [3] * chunks)))
        assert sum(clip.shape[1] for clip in clips) == video.shape[1]
        return np.array([streaming._encode._cache_size(), streaming._decode._cache_size()])

    before = [streaming._encode._cache_size(), streaming._decode._cache_size()]
    compiled = programs(4)  # of a size that no other test has
    assert (compiled - before).tolist() == [4, 4]
    for chunks in (4, 8):
        assert programs(chunks).tolist() == compiled.tolist()


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
