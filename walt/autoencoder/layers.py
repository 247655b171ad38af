"""Causal building blocks: convolution, per-frame normalisation, space-to-depth.

Layout is [batch, time, height, width, channel]. Nothing here looks at a later frame, so a prefix of the input gives a prefix of the output.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.convolution import Size3, convolve
from walt.parallel.activations import constrain

Widths = tuple[tuple[int, int], ...]
"""Of a border: how many positions before and after, along time, height and width."""


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
    return _repeat_border(x, (time, *space))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeat_border(x: Float[Array, "b t h w c"], widths: Widths) -> Float[Array, "b s i j c"]:
    return jnp.pad(x, ((0, 0), *widths, (0, 0)), mode="edge")


def _folded(padded: Float[Array, "b s i j c"], widths: Widths, axis: int = 1) -> Float[Array, "b t h w c"]:
    """The gradient of `_repeat_border`: what was repeated from the border is added to it again.

    As a sum of the inside and of thin slices, so that it takes one pass; JAX's own goes over the whole array for each side.
    """
    if axis > len(widths):
        return padded
    before, after = widths[axis - 1]
    size = padded.shape[axis] - before - after
    part = lambda start, stop: jax.lax.slice_in_dim(padded, start, stop, axis=axis)  # noqa: E731
    whole = _folded(part(before, before + size), widths, axis + 1)
    for start, stop, place in ((0, before, 0), (before + size, before + size + after, size - 1)):
        if start == stop:
            continue
        border = _folded(part(start, stop).sum(axis, keepdims=True), widths, axis + 1)
        room = [(0, 0, 0)] * padded.ndim
        room[axis] = (place, size - 1 - place, 0)
        whole = whole + jax.lax.pad(border, jnp.zeros((), padded.dtype), room)
    return whole


_repeat_border.defvjp(
    lambda x, widths: (_repeat_border(x, widths), None), lambda widths, _, cotangent: (_folded(cotangent, widths),)
)


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
        wide = x.astype(jnp.float32)
        # Both moments in one pass over x, per channel first: a TPU's convolution makes them while it writes x, and no array is laid out by groups, of
        # which a few channels would each fill 128 lanes. The mean is of the order of the spread, so their difference loses few digits.
        mean, square = (self._over_groups(values.mean(axis=(2, 3))) for values in (wide, jnp.square(wide)))
        y = (wide - mean) * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + 1e-6)
        if self.scale is not None and self.bias is not None:
            assert affine is None  # a norm with scale and shift of its own takes no others
            affine = self.scale[...], self.bias[...]
        if affine is not None:
            y = y * affine[0] + affine[1]
        return y.astype(x.dtype)

    def _over_groups(self, values: Float[Array, "b t c"]) -> Float[Array, "b t 1 1 c"]:
        """For every channel the mean over its group."""
        means = values.reshape(*values.shape[:-1], self.groups, -1).mean(axis=-1)
        return jnp.repeat(means, values.shape[-1] // self.groups, axis=-1)[:, :, None, None]


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
