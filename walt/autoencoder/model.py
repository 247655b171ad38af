"""The causal video autoencoder: pixels in [-1, 1] to latents and back (W.A.L.T section 3.1, after MAGVIT-v2).

An image is a clip of one frame. The first frame is always encoded on its own; every later latent frame stands for `time_factor` pixel frames.
"""

from __future__ import annotations

import itertools
import logging

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.layers import CausalConv, GroupNorm, Stream, depth_to_space, space_to_depth

PIXEL_CHANNELS = 3
RANGE = 2.0
"""Larger pixel values than this are no overshoot but another convention."""


class LatentStatistic(nnx.Variable):
    """A per-channel statistic of the latents over the training set; set by calibration, never by an optimiser."""


class ResBlock(nnx.Module):
    """Norm, swish, convolution, twice, beside a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, temporal_kernel: int, config: AutoencoderConfig, rngs: nnx.Rngs
    ):
        kernel, dtype = (temporal_kernel, 3, 3), jnp.dtype(config.dtype)
        self.norm1 = GroupNorm(in_channels, config.groups)
        self.conv1 = CausalConv(in_channels, out_channels, kernel, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, config.groups)
        self.conv2 = CausalConv(out_channels, out_channels, kernel, use_bias=False, dtype=dtype, rngs=rngs)
        same = in_channels == out_channels
        self.shortcut = (
            None if same else CausalConv(in_channels, out_channels, (1, 1, 1), use_bias=False, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: Float[Array, "b t h w c"], stream: Stream | None = None) -> Float[Array, "b t h w d"]:
        y = self.conv1(nnx.swish(self.norm1(x)), stream)
        y = self.conv2(nnx.swish(self.norm2(y)), stream)
        return y + (x if self.shortcut is None else self.shortcut(x))


class AdaptiveNorm(nnx.Module):
    """Group norm whose scale and shift are linear in the latents at the same place.

    The linear maps run on the latent grid and their result is resized: a map of each position commutes with nearest-neighbour resizing.
    """

    def __init__(self, channels: int, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, config.groups, affine=False)
        self.modulation = CausalConv(
            config.latent_channels, 2 * channels, (1, 1, 1), dtype=jnp.dtype(config.dtype), rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "b t h w c"], latents: Float[Array, "b f i j l"], first: bool = True
    ) -> Float[Array, "b t h w c"]:
        size = (x.shape[1], x.shape[2], x.shape[3])
        scale, shift = jnp.split(resize_nearest(self.modulation(latents), size, first), 2, axis=-1)
        return self.norm(x, (1 + scale.astype(jnp.float32), shift))


def resize_nearest(
    z: Float[Array, "b f i j c"], size: tuple[int, int, int], first: bool = True
) -> Float[Array, "b t h w c"]:
    """Repeat latents onto a finer grid; at the beginning of a video frame 0 stays single, as in `depth_to_space`."""
    frames, height, width = size
    if first:
        time = 1 if z.shape[1] == 1 else (frames - 1) // (z.shape[1] - 1)
    else:
        time = frames // z.shape[1]
    for axis, repeats in ((1, time), (2, height // z.shape[2]), (3, width // z.shape[3])):
        z = z if repeats == 1 else jnp.repeat(z, repeats, axis=axis)
    return z[:, time - 1 if first else 0 :]


class Encoder(nnx.Module):
    """Pixels to raw latents."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        widths, dtype = config.widths, jnp.dtype(config.dtype)
        self.patchify = config.patchify
        channels = PIXEL_CHANNELS * config.patchify**2
        self.stem = CausalConv(channels, widths[0], (config.temporal_kernels[0], 3, 3), dtype=dtype, rngs=rngs)
        stages: list[nnx.Module] = []
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.res_blocks):
                stages.append(ResBlock(channels, width, config.temporal_kernels[level], config, rngs))
                channels = width
            if level < len(config.strides):
                stages.append(self._down(channels, config.strides[level], config, rngs))
        stages += [
            ResBlock(channels, channels, config.temporal_kernels[-1], config, rngs) for _ in range(config.mid_blocks)
        ]
        self.stages = nnx.List(stages)
        self.norm = GroupNorm(channels, config.groups)
        self.head = CausalConv(channels, config.latent_channels, (1, 1, 1), dtype=dtype, rngs=rngs)

    @staticmethod
    def _down(channels: int, stride: tuple[int, int], config: AutoencoderConfig, rngs: nnx.Rngs) -> CausalConv:
        time, space = stride
        strides = (time, space, space)
        kernel = (config.down_kernel,) * 3 if config.time_factor > 1 else (1, config.down_kernel, config.down_kernel)
        return CausalConv(channels, channels, kernel, strides=strides, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(self, video: Float[Array, "b t h w 3"], stream: Stream | None = None) -> Float[Array, "b f i j c"]:
        x = self.stem(space_to_depth(video, self.patchify), stream)
        for stage in self.stages:
            x = stage(x, stream)
        return self.head(nnx.swish(self.norm(x)))


class DecoderLevel(nnx.Module):
    """Adaptive norm, residual blocks and, but for the finest level, upsampling by depth-to-space."""

    def __init__(
        self,
        channels: int,
        width: int,
        temporal_kernel: int,
        stride: tuple[int, int] | None,
        config: AutoencoderConfig,
        rngs: nnx.Rngs,
    ):
        self.norm = AdaptiveNorm(channels, config, rngs)
        widths = [channels] + [width] * config.res_blocks
        self.blocks = nnx.List([ResBlock(a, b, temporal_kernel, config, rngs) for a, b in itertools.pairwise(widths)])
        self.stride = stride
        if stride is not None:
            time, space = stride
            self.up = CausalConv(
                width, width * time * space * space, (temporal_kernel, 3, 3), dtype=jnp.dtype(config.dtype), rngs=rngs
            )

    def __call__(
        self, x: Float[Array, "b t h w c"], latents: Float[Array, "b f i j l"], stream: Stream | None = None
    ) -> Float[Array, "b T H W d"]:
        first = stream is None or stream.first
        x = self.norm(x, latents, first)
        for block in self.blocks:
            x = block(x, stream)
        return x if self.stride is None else depth_to_space(self.up(x, stream), *self.stride, first)


class Decoder(nnx.Module):
    """Raw latents to pixels."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        widths, dtype = config.widths, jnp.dtype(config.dtype)
        first_kernel = config.temporal_kernels[0]
        self.patchify = config.patchify
        self.stem = CausalConv(
            config.latent_channels, widths[-1], (config.temporal_kernels[-1], 3, 3), dtype=dtype, rngs=rngs
        )
        self.mid = nnx.List(
            [
                ResBlock(widths[-1], widths[-1], config.temporal_kernels[-1], config, rngs)
                for _ in range(config.mid_blocks)
            ]
        )
        levels, channels = [], widths[-1]
        for level in reversed(range(len(widths))):
            stride = config.strides[level - 1] if level else None
            levels.append(DecoderLevel(channels, widths[level], config.temporal_kernels[level], stride, config, rngs))
            channels = widths[level]
        self.levels = nnx.List(levels)
        self.norm = GroupNorm(channels, config.groups)
        self.head = CausalConv(
            channels, PIXEL_CHANNELS * config.patchify**2, (first_kernel, 3, 3), dtype=dtype, rngs=rngs
        )

    def __call__(self, latents: Float[Array, "b f i j c"], stream: Stream | None = None) -> Float[Array, "b t h w 3"]:
        x = self.stem(latents, stream)
        for block in self.mid:
            x = block(x, stream)
        for level in self.levels:
            x = level(x, latents, stream)
        return depth_to_space(self.head(nnx.swish(self.norm(x)), stream), 1, self.patchify)


class Autoencoder(nnx.Module):
    """The first stage. `encode` and `decode` speak normalised latents; everything inside sees raw ones.

    `latent_mean` and `latent_std` are 0 and 1 until the stage-1 job calibrates them.
    """

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.latent_mean = LatentStatistic(jnp.zeros(config.latent_channels))
        self.latent_std = LatentStatistic(jnp.ones(config.latent_channels))

    def encode(self, video: Float[Array, "b t h w 3"]) -> Float[Array, "b f i j c"]:
        """Normalised latents of clips in [-1, 1]; raises `ValueError` unless t = 1 + 4k and the sides are multiples of 8 (factors of the config).

        For videos in parts see `stream_encode`.
        """
        self.check_video(video)
        self.config.latent_shape(*video.shape[1:4])
        return (self.encode_raw(video) - self.latent_mean[...]) / self.latent_std[...]

    def decode(self, latents: Float[Array, "b f i j c"]) -> Float[Array, "b t h w 3"]:
        """Clips in about [-1, 1] (not clipped) from normalised latents; raises `ValueError` on another number of channels."""
        if latents.ndim != 5 or latents.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f"decode takes [batch, frames, height, width, {self.config.latent_channels}], got {latents.shape}"
            )
        return self.decode_raw(latents * self.latent_std[...] + self.latent_mean[...])

    @staticmethod
    def check_video(video: Array) -> None:
        """Raises `ValueError` unless this is [batch, time, height, width, 3] of floats in about [-1, 1]."""
        if not jnp.issubdtype(video.dtype, jnp.floating):
            raise ValueError(
                f"encode takes float video in [-1, 1], got {video.dtype}; divide uint8 pixels by 127.5 and subtract 1"
            )
        if video.ndim != 5 or video.shape[-1] != PIXEL_CHANNELS:
            raise ValueError(f"encode takes [batch, time, height, width, 3], got {video.shape}")
        # Under jit there are no values to look at. Decoded video overshoots a little and may be encoded again.
        if not isinstance(video, jax.core.Tracer) and video.size and jnp.abs(video).max() > RANGE:
            raise ValueError(
                f"encode takes video in [-1, 1], got values from {video.min():g} to {video.max():g}; divide pixels of 0 to 255 "
                "by 127.5 and subtract 1"
            )
        if not isinstance(video, jax.core.Tracer) and video.size and video.min() >= 0 and video.max() <= 1:
            logging.warning(
                "encode takes video in [-1, 1], and this one lies in [%.3g, %.3g]: was it scaled to [0, 1]? Then double it and "
                "subtract 1",
                video.min(),
                video.max(),
            )

    def encode_raw(self, video: Float[Array, "b t h w 3"], stream: Stream | None = None) -> Float[Array, "b f i j c"]:
        """Latents before normalisation, in float32. With a `stream` the video is a chunk of a longer one."""
        return self.encoder(video, stream).astype(jnp.float32)

    def decode_raw(self, latents: Float[Array, "b f i j c"], stream: Stream | None = None) -> Float[Array, "b t h w 3"]:
        """Clips from latents before normalisation, in float32. With a `stream` the latents are a chunk of more."""
        return self.decoder(latents, stream).astype(jnp.float32)


def to_float(video: Array) -> Float[Array, "..."]:
    """uint8 pixels to [-1, 1]."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "..."]) -> Array:
    """[-1, 1] to uint8 pixels, clipped and rounded."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def reconstruct(model: Autoencoder, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """Encode and decode without the border's checks and normalisation (they cancel)."""
    return model.decode_raw(model.encode_raw(video))
