"""Properties of the autoencoder on a small random model: causality, images as first frames, sizes, dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import AdaptiveNorm, Autoencoder, to_float, to_uint8
from walt.config import ConfigError
from walt.training.module import Functional, count_parameters

# Every piece of the published model, narrow: three downsamplings with strides in time, 3x3x3 kernels, one block each.
SMALL = AutoencoderConfig(
    latent_channels=4, base_channels=4, channel_multipliers=(1, 2, 2, 2), res_blocks=1, mid_blocks=1, groups=2
)
PATCHIFIED = dataclasses.replace(
    SMALL, patchify=4, channel_multipliers=(1, 2, 2), strides=((2, 2), (2, 1)), temporal_kernels=(1, 1, 3)
)
FRAMES, SIDE = 17, 16


def build(config):
    model = Functional(lambda rngs: Autoencoder(config, rngs))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    encode = jax.jit(lambda video: model.bind(params, extra).encode(video))
    decode = jax.jit(lambda latents: model.bind(params, extra).decode(latents))
    return encode, decode


@pytest.fixture(scope="module", params=[SMALL, PATCHIFIED], ids=["published shape", "patchified"])
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def video():
    return jax.random.uniform(jax.random.key(1), (1, FRAMES, SIDE, SIDE, 3), minval=-1.0)


def test_shapes_mirror(model, video):
    encode, decode = model
    latents = encode(video)
    assert latents.shape == (1, 5, 2, 2, 4) and latents.dtype == jnp.float32
    assert decode(latents).shape == video.shape


def test_image_is_the_first_frame_of_a_video(model, video):
    encode, decode = model
    latents = encode(video)
    np.testing.assert_allclose(encode(video[:, :1]), latents[:, :1], atol=1e-5)
    np.testing.assert_allclose(decode(latents[:, :1]), decode(latents)[:, :1], atol=1e-5)


@pytest.mark.parametrize(
    ("seen", "first"),
    [
        ([0], True),
        ([0, 1, 2, 3], True),
        ([0, 1, 1, 2, 2, 3, 3], True),
        ([0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], True),
        # Latents 0 to 3 of a later chunk: none stands for a single frame.
        ([0, 1, 2, 3], False),
        ([0, 0, 1, 1, 2, 2, 3, 3], False),
        ([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], False),
    ],
)
def test_which_latent_a_frame_is_modulated_by(seen, first):
    """Frame t of 1 + 4k sees latent ceil(t / 4), of 1 + 2k latent ceil(t / 2), of 1 + k latent t."""
    norm = AdaptiveNorm(2, dataclasses.replace(SMALL, latent_channels=1), nnx.Rngs(0))
    norm.modulation.kernel[...] = jnp.zeros((1, 1, 1, 1, 4)).at[..., 2:].set(1.0)  # shifts by the latent
    latents = jnp.arange(max(seen) + 1.0).reshape(1, -1, 1, 1, 1)
    shifted = norm(jnp.zeros((1, len(seen), 4, 2, 2)), latents, first)
    for position in np.ndindex(4, 2, 2):
        np.testing.assert_array_equal(shifted[(0, slice(None), *position)], seen)


def test_the_decoders_levels_have_the_lengths_of_that_table(monkeypatch):
    lengths, norm = [], AdaptiveNorm.__call__

    def noted(self, x, latents, first):
        lengths.append(x.shape[1])
        return norm(self, x, latents, first)

    monkeypatch.setattr(AdaptiveNorm, "__call__", noted)
    model = nnx.eval_shape(lambda: Autoencoder(SMALL, nnx.Rngs(0)))
    nnx.eval_shape(lambda model, latents: model.decode(latents), model, jnp.zeros((1, 4, 1, 1, 4)))
    assert lengths == [1 + 3, 1 + 2 * 3, 1 + 4 * 3, 1 + 4 * 3]


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 9, 16])
def test_changing_a_frame_moves_nothing_before_it(model, video, frame):
    encode, decode = model
    latents, changed = encode(video), encode(video.at[:, frame].add(0.5))
    first = -(-frame // 4)
    np.testing.assert_array_equal(changed[:, :first], latents[:, :first])
    assert np.abs(changed[:, first] - latents[:, first]).max() > 1e-6
    before = max(0, 4 * first - 3)
    np.testing.assert_array_equal(decode(changed)[:, :before], decode(latents)[:, :before])


@pytest.mark.parametrize("index", range(5))
def test_changing_a_latent_moves_nothing_before_it(model, index):
    _, decode = model
    latents = jax.random.normal(jax.random.key(2), (1, 5, 2, 2, 4))
    video, changed = decode(latents), decode(latents.at[:, index].add(0.5))
    before = max(0, 4 * index - 3)
    np.testing.assert_array_equal(changed[:, :before], video[:, :before])
    assert np.abs(changed[:, before:] - video[:, before:]).max() > 1e-6


@pytest.mark.parametrize(
    ("frames", "height", "width", "dtype"),
    [
        (1, 8, 24, "float32"),
        (9, 24, 8, "bfloat16"),
        pytest.param(129, 8, 8, "float32", marks=pytest.mark.slow),
        pytest.param(129, 8, 24, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_other_lengths_and_sizes_are_causal_too(frames, height, width, dtype):
    """Sides of an odd number of latent positions, one frame and many, both precisions; bit for bit before a change."""
    encode, decode = build(dataclasses.replace(PATCHIFIED, dtype=dtype))
    video = jax.random.uniform(jax.random.key(3), (1, frames, height, width, 3), minval=-1.0)
    latents = encode(video)
    made = decode(latents)
    assert latents.shape == (1, 1 + (frames - 1) // 4, height // 8, width // 8, 4) and made.shape == video.shape
    tolerance = 1e-5 if dtype == "float32" else 2e-2 * float(np.abs(latents).max())
    np.testing.assert_allclose(encode(video[:, :1]), latents[:, :1], atol=tolerance)
    for frame in {0, frames // 2, frames - 1}:
        changed, first = encode(video.at[:, frame].add(0.5)), -(-frame // 4)
        np.testing.assert_array_equal(changed[:, :first], latents[:, :first])
        assert np.any(changed[:, first] != latents[:, first])
        before = max(0, 4 * first - 3)
        np.testing.assert_array_equal(decode(changed)[:, :before], made[:, :before])


def test_statistics_are_applied_at_the_border():
    module = Functional(lambda rngs: Autoencoder(PATCHIFIED, rngs))
    params, extra = jax.jit(module.init)(jax.random.key(0))
    video = jax.random.uniform(jax.random.key(1), (1, 5, SIDE, SIDE, 3))
    encode = jax.jit(lambda extra, video: module.bind(params, extra).encode(video))
    decode = jax.jit(lambda extra, latents: module.bind(params, extra).decode(latents))
    assert {k: v.shape for k, v in extra.items()} == {"latent_mean": (4,), "latent_std": (4,)}
    mean, std = jnp.array([1.0, -2.0, 0.5, 0.0]), jnp.array([2.0, 0.5, 1.0, 3.0])
    calibrated = {"latent_mean": mean, "latent_std": std}
    np.testing.assert_allclose(encode(calibrated, video), (encode(extra, video) - mean) / std, atol=1e-5)
    np.testing.assert_allclose(
        decode(calibrated, encode(calibrated, video)), decode(extra, encode(extra, video)), atol=1e-4, rtol=1e-4
    )


def test_bfloat16_is_close_to_float32(video):
    exact = build(PATCHIFIED)[0](video)
    rounded = build(dataclasses.replace(PATCHIFIED, dtype="bfloat16"))[0](video)
    assert rounded.dtype == jnp.float32
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.05


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 20, 16, 16, 3), "20 frames does not fit.*so 17 or 21"),
        ((1, 5, 12, 16, 3), "height of 12 .* multiples of 8"),
        ((1, 5, 16, 20, 3), "width of 20 .* multiples of 8"),
        ((1, 5, 16, 16, 4), "batch, time, height, width, 3"),
        ((5, 16, 16, 3), "batch, time, height, width, 3"),
    ],
)
def test_refuses_sizes(shape, message):
    module = Functional(lambda rngs: Autoencoder(SMALL, rngs))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p, e: module.bind(p, e).encode(jnp.zeros(shape)), *module_trees(module))


def test_refuses_uint8_and_other_channels():
    module = Functional(lambda rngs: Autoencoder(SMALL, rngs))
    with pytest.raises(ValueError, match="float video in \\[-1, 1\\], got uint8"):
        jax.eval_shape(
            lambda p, e: module.bind(p, e).encode(jnp.zeros((1, 5, 16, 16, 3), jnp.uint8)), *module_trees(module)
        )
    with pytest.raises(ValueError, match="width, 4\\]"):
        jax.eval_shape(lambda p, e: module.bind(p, e).decode(jnp.zeros((1, 2, 2, 2, 8))), *module_trees(module))


def module_trees(module):
    return module.abstract_params, module.abstract_extra


@pytest.mark.parametrize(
    ("config", "millions"),
    [
        (AutoencoderConfig(), 370),
        (AutoencoderConfig(down_kernel=4), 376),
        (AutoencoderConfig(base_channels=64, res_blocks=2, mid_blocks=2), 56.5),
        (AutoencoderConfig(base_channels=64, res_blocks=2, mid_blocks=2, down_kernel=4), 57.8),
        (AutoencoderConfig(channel_multipliers=(1, 1, 2, 4), temporal_kernels=(1,) * 4, strides=((1, 2),) * 3), 103),
    ],
)
def test_published_parameter_counts(config, millions):
    module = Functional(lambda rngs: Autoencoder(config, rngs))
    assert count_parameters(module.abstract_params) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 3}, "groups=3 does not divide"),
        ({"patchify": 3}, "patchify=3"),
        ({"strides": ((2, 2),)}, "strides has 1"),
        ({"temporal_kernels": (3,)}, "temporal_kernels has 1"),
    ],
)
def test_refuses_configs(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_pixels_round_trip():
    pixels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(pixels)), pixels)
    assert to_float(pixels).min() == -1.0 and to_float(pixels).max() == 1.0
