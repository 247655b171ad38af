"""An inflated autoencoder gives what the image autoencoder gives, on pictures and on videos that stand still."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder import Autoencoder, AutoencoderConfig
from walt.autoencoder.inflate import inflate
from walt.config import ConfigError
from walt.training.module import Functional

VIDEO = AutoencoderConfig(
    latent_channels=4,
    base_channels=4,
    channel_multipliers=(1, 2, 2),
    strides=((2, 2), (2, 2)),
    temporal_kernels=(3, 3, 3),
    res_blocks=1,
    mid_blocks=0,
    groups=2,
)
IMAGE = dataclasses.replace(VIDEO, temporal_kernels=(1, 1, 1), strides=((1, 2), (1, 2)))
STATISTICS = {"latent_mean": jnp.full(4, 0.2), "latent_std": jnp.full(4, 1.5)}


def functions(config, params):
    model = Functional(lambda rngs: Autoencoder(config, rngs))
    encode = jax.jit(lambda video: model.bind(params, STATISTICS).encode(video))
    return encode, jax.jit(lambda latents: model.bind(params, STATISTICS).decode(latents))


@pytest.fixture(scope="module")
def params():
    """Random everywhere: fresh biases are zero and would hide a wrong order of channels."""
    rng = np.random.default_rng(0)
    abstract = Functional(lambda rngs: Autoencoder(IMAGE, rngs)).abstract_params
    return jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), abstract)


@pytest.mark.parametrize("down_kernel", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_pictures_and_static_videos_come_out_as_from_the_image_model(params, down_kernel):
    image, video = (dataclasses.replace(config, down_kernel=down_kernel) for config in (IMAGE, VIDEO))
    if down_kernel != 3:
        rng = np.random.default_rng(1)
        abstract = Functional(lambda rngs: Autoencoder(image, rngs)).abstract_params
        params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), abstract)
    encode, decode = functions(image, params)
    encode_video, decode_video = functions(video, inflate(params, image, video))
    picture = jax.random.uniform(jax.random.key(0), (2, 1, 16, 8, 3), minval=-1.0)
    latents = encode(picture)
    made = decode(latents)
    for frames in (1, 9):
        inflated = encode_video(jnp.repeat(picture, frames, axis=1))
        count = 1 + (frames - 1) // 4
        np.testing.assert_allclose(inflated, np.repeat(latents, count, axis=1), atol=1e-4)
        np.testing.assert_allclose(decode_video(inflated), np.repeat(made, frames, axis=1), atol=1e-4)


@pytest.mark.slow
def test_a_moving_video_is_every_fourth_picture_held(params):
    encode, decode = functions(IMAGE, params)
    encode_video, decode_video = functions(VIDEO, inflate(params, IMAGE, VIDEO))
    video = jax.random.uniform(jax.random.key(1), (1, 9, 8, 8, 3), minval=-1.0)
    latents = encode_video(video)
    np.testing.assert_allclose(latents, encode(video[:, ::4]), atol=1e-4)
    held = np.repeat(decode(latents), [1, 4, 4], axis=1)
    np.testing.assert_allclose(decode_video(latents), held, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "video", "message"),
    [
        ({"temporal_kernels": (1, 1, 3)}, {}, "only an image autoencoder"),
        ({"strides": ((1, 2), (2, 2))}, {}, "only an image autoencoder"),
        ({}, {"latent_channels": 8}, "differ in time alone, but differ in latent_channels: are both"),
        ({}, {"strides": ((2, 2), (2, 1))}, "differ in time alone, but differ in strides: are both"),
    ],
)
def test_refuses_what_is_more_than_time(params, image, video, message):
    with pytest.raises(ConfigError, match=message):
        inflate(params, dataclasses.replace(IMAGE, **image), dataclasses.replace(VIDEO, **video))
