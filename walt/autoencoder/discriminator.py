"""The critic of stage 1: tells real clips from reconstructed ones (MAGVIT-v2, after StyleGAN). Not causal, and without norms."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.config import DiscriminatorConfig
from walt.autoencoder.layers import Conv

PIXEL_CHANNELS = 3
SLOPE = 0.2


class Discriminator(nnx.Module):
    """One logit per clip; positive means real.

    The last convolution is flattened, so a discriminator belongs to clips of one size, `clip_shape` = (frames, height,
    width).
    """

    def __init__(self, config: DiscriminatorConfig, clip_shape: tuple[int, int, int], rngs: nnx.Rngs):
        dtype, widths = jnp.dtype(config.dtype), config.widths
        self.stem = Conv(PIXEL_CHANNELS, widths[0], (3, 3, 3), dtype=dtype, rngs=rngs)
        pairs = itertools.pairwise(widths)
        self.blocks = nnx.List([DownBlock(before, after, dtype, rngs) for before, after in pairs])
        self.head = Conv(widths[-1], widths[-1], (3, 3, 3), dtype=dtype, rngs=rngs)
        positions = math.prod(-(-size // 2 ** len(self.blocks)) for size in clip_shape)
        self.hidden = nnx.Linear(positions * widths[-1], widths[-1], rngs=rngs)
        self.logit = nnx.Linear(widths[-1], 1, rngs=rngs)

    def __call__(self, video: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
        """Logits of clips in [0, 1]."""
        x = nnx.leaky_relu(self.stem(video), SLOPE)
        for block in self.blocks:
            x = block(x)
        x = nnx.leaky_relu(self.head(x), SLOPE)
        x = x.reshape(x.shape[0], -1).astype(jnp.float32)
        return self.logit(nnx.leaky_relu(self.hidden(x), SLOPE))[:, 0]


class DownBlock(nnx.Module):
    """Two convolutions around a halving of every axis, beside a halved shortcut; the sum keeps its variance."""

    def __init__(self, in_channels: int, out_channels: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, in_channels, (3, 3, 3), dtype=dtype, rngs=rngs)
        self.conv2 = Conv(in_channels, out_channels, (3, 3, 3), dtype=dtype, rngs=rngs)
        self.shortcut = Conv(in_channels, out_channels, (1, 1, 1), use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j d"]:
        y = blur_pool(nnx.leaky_relu(self.conv1(x), SLOPE))
        y = nnx.leaky_relu(self.conv2(y), SLOPE)
        return (y + self.shortcut(blur_pool(x))) / math.sqrt(2.0)


def blur_pool(x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j c"]:
    """Halves time, height and width (rounding up) after blurring each with [1, 2, 1] / 4 (Zhang, 2019); the border repeats."""
    for axis in (1, 2, 3):
        half = -(-x.shape[axis] // 2)
        padding = [(0, 0)] * 5
        padding[axis] = (1, 1) if x.shape[axis] % 2 else (0, 1)
        padded = jnp.pad(x, padding, mode="edge")
        taps = [jax.lax.slice_in_dim(padded, tap, tap + 2 * half - 1, 2, axis) for tap in range(3)]
        x = (taps[0] + 2.0 * taps[1] + taps[2]) / 4.0
    return x
