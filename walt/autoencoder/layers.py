"""Causal building blocks: convolution, per-frame normalisation, space-to-depth.

Layout is [batch, time, height, width, channel]. Nothing here looks at a later frame, so a prefix of the input gives a prefix of the output.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.convolution import Size3, convolve
from walt.parallel.activations import constrain


class Stream:
    """What the layers of one forward pass over a chunk know of the frames before it.

    Every causal convolution, in the order of the pass, takes the end of its last input from `before` and leaves the end
    of this one in `after`, which is `before` of the next chunk. Without `before` the chunk is the first: the past is
    replicated, as for a whole video.
    """

    def __init__(self, before: tuple[Array, ...] | None = None):
        self.first = before is None
        self.after: list[Array] = []
        self._before = iter(before or ())

    def extend(self, x: Float[Array, "b t h w c"], frames: int, stride: int) -> Float[Array, "b s h w c"]:
        """`x` behind the `frames` frames that precede it, beginning where the convolution's next window does.

        Chunks after the first begin right after a multiple of `stride`, hence stride - 1 frames before that window's end.
        """
        x = pad_replicate(x, (frames + 1, 1, 1)) if self.first else jnp.concatenate([next(self._before), x], axis=1)
        self.after.append(x[:, x.shape[1] - frames :])
        return x if self.first else x[:, stride - 1 :]


class Conv(nnx.Module):
    """3D convolution with replicate padding, centred in time and space: ((k-1)//2, k//2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Size3,
        *,
        strides: Size3 = (1, 1, 1),
        use_bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        scale = 1.0 / math.sqrt(in_channels * math.prod(kernel))
        shape = (*kernel, in_channels, out_channels)
        self.kernel = nnx.Param(scale * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape) / 0.87962566)
        self.bias = nnx.Param(jnp.zeros(out_channels)) if use_bias else None
        self.size = kernel
        self.strides = strides
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j d"]:
        return self._convolve(pad_replicate(x.astype(self.dtype), self.size, causal=False))

    def _convolve(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j d"]:
        y = convolve(x, self.kernel[...].astype(self.dtype), self.strides)
        y = y if self.bias is None else y + self.bias[...].astype(self.dtype)
        # Rows of large frames may be divided too: the compiler exchanges the borders that the next convolution sees.
        return constrain(y, "batch", None, "context", None, None)


class CausalConv(Conv):
    """`Conv` with all of the temporal padding in the past: time (k-1, 0)."""

    def __call__(self, x: Float[Array, "b t h w c"], stream: Stream | None = None) -> Float[Array, "b s i j d"]:
        x = x.astype(self.dtype)
        sees_past = self.size[0] > 1 or self.strides[0] > 1
        if stream is None or not sees_past:
            x = pad_replicate(x, self.size)
        else:
            x = stream.extend(pad_replicate(x, (1, *self.size[1:])), self.size[0] - 1, self.strides[0])
        return self._convolve(x)


def pad_replicate(x: Float[Array, "b t h w c"], kernel: Size3, causal: bool = True) -> Float[Array, "b s i j c"]:
    """Repeat the border so that a VALID convolution with `kernel` is centred in space, and in time too unless `causal`."""
    if kernel == (1, 1, 1):
        return x
    time, *space = (((k - 1) // 2, k // 2) for k in kernel)
    if causal:
        time = (kernel[0] - 1, 0)
    return jnp.pad(x, ((0, 0), time, *space, (0, 0)), mode="edge")


class GroupNorm(nnx.Module):
    """Group normalisation with statistics per frame: a norm over time would let the first frame see the last.

    In float32, scale and shift included: those of its own or those that the call gives.
    """

    def __init__(self, channels: int, groups: int, *, affine: bool = True):
        self.groups = groups
        self.scale = nnx.Param(jnp.ones(channels)) if affine else None
        self.bias = nnx.Param(jnp.zeros(channels)) if affine else None

    def __call__(
        self, x: Float[Array, "b t h w c"], affine: tuple[Array, Array] | None = None
    ) -> Float[Array, "b t h w c"]:
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, -1)
        mean = grouped.mean(axis=(2, 3, 5), keepdims=True)
        variance = jnp.square(grouped - mean).mean(axis=(2, 3, 5), keepdims=True)
        y = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
        if self.scale is not None and self.bias is not None:
            assert affine is None  # a norm with scale and shift of its own takes no others
            affine = self.scale[...], self.bias[...]
        if affine is not None:
            y = y * affine[0] + affine[1]
        return y.astype(x.dtype)


def space_to_depth(x: Float[Array, "b t H W c"], block: int) -> Float[Array, "b t h w d"]:
    """Fold `block` x `block` pixels into channels."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h // block, w // block, block * block * c)


def depth_to_space(
    x: Float[Array, "b t h w d"], time: int, space: int, first: bool = True
) -> Float[Array, "b T H W c"]:
    """Unfold channels into (time, space, space) blocks; at the beginning of a video (`first`) drop time-1 frames, so that frame 0 stays a frame of its own."""
    b, t, h, w, d = x.shape
    c = d // (time * space * space)
    x = x.reshape(b, t, h, w, time, space, space, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, t * time, h * space, w * space, c)[:, time - 1 if first else 0 :]
