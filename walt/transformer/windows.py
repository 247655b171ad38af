"""Non-overlapping windows over the token grid, and the relative position bias within one.

Windows are unshifted (as in W.A.L.T). Where a window does not divide the grid, the last one of an axis is padded at its end and the padding masked
as key, so the result equals dense attention restricted to tokens of the same window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from walt.transformer.config import Size3
from walt.transformer.layers import small_normal

COLUMNS = 8  # of a TPU's tile, of bfloat16 too; 16 on tpu7x


@dataclass(frozen=True)
class Windows:
    """How a grid `(T, H, W)` of tokens is cut into windows; a window larger than the grid is clipped to it.

    Windows are ordered by (height, time, width), so that those of a band of rows are neighbours: rows that are divided over devices stay where they
    are where bands are not cut.
    """

    grid: Size3
    largest: Size3

    @property
    def window(self) -> Size3:
        t, h, w = (min(size, side) for size, side in zip(self.largest, self.grid, strict=True))
        return t, h, w

    @property
    def counts(self) -> Size3:
        t, h, w = (-(-side // size) for side, size in zip(self.grid, self.window, strict=True))
        return t, h, w

    @property
    def number(self) -> int:
        """Of windows."""
        return math.prod(self.counts)

    @property
    def tokens(self) -> int:
        """Tokens per window, padding included."""
        return math.prod(self.window)

    @property
    def padding(self) -> Size3:
        t, h, w = (count * size - side for count, size, side in zip(self.counts, self.window, self.grid, strict=True))
        return t, h, w

    @property
    def apart(self) -> Windows:
        """Of a grid in which these windows, which `split` cuts, lie one after another: `(windows, 1, tokens)`."""
        return Windows((self.number, 1, self.tokens), (1, 1, self.tokens))

    def lie_in_grid(self, devices: int) -> bool:
        """Whether tokens can stay in their grid: windows fill it, whole bands of them lie on each of the devices that share its rows, and each has whole
        tiles of a TPU, which lays columns side by side in eights."""
        return not any(self.padding) and self.counts[1] % devices == 0 and self.window[2] % COLUMNS == 0

    def split(self, x: Float[Array, "B T H W d"]) -> Float[Array, "B windows 1 n d"]:
        """Cuts the grid into windows, padded where they reach over its ends."""
        batch, width = x.shape[0], x.shape[-1]
        if any(self.padding):
            x = jnp.pad(x, ((0, 0), *((0, extra) for extra in self.padding), (0, 0)))
        (nt, nh, nw), (t, h, w) = self.counts, self.window
        x = x.reshape(batch, nt, t, nh, h, nw, w, width).transpose(0, 3, 1, 5, 2, 4, 6, 7)
        return x.reshape(batch, nh * nt * nw, 1, t * h * w, width)

    def merge(self, x: Float[Array, "B windows 1 n d"]) -> Float[Array, "B T H W d"]:
        """Inverse of `split`; drops the padding."""
        batch, width = x.shape[0], x.shape[-1]
        (nt, nh, nw), (t, h, w) = self.counts, self.window
        x = x.reshape(batch, nh, nt, nw, t, h, w, width).transpose(0, 2, 4, 1, 5, 3, 6, 7)
        x = x.reshape(batch, nt * t, nh * h, nw * w, width)
        return x[:, : self.grid[0], : self.grid[1], : self.grid[2]]

    def by_head(self, x: Float[Array, "B T H W d"], heads: int) -> Float[Array, "heads B windows n e"]:
        """Tokens of every head and window, in one copy; there must be no padding."""
        (nt, nh, nw), (t, h, w) = self.counts, self.window
        x = x.reshape(len(x), nt, t, nh, h, nw, w, heads, -1).transpose(7, 0, 3, 1, 5, 2, 4, 6, 8)
        return x.reshape(heads, x.shape[1], self.number, self.tokens, -1)

    def of_heads(self, x: Float[Array, "heads B windows n e"]) -> Float[Array, "B T H W d"]:
        """Inverse of `by_head`."""
        (nt, nh, nw), (t, h, w) = self.counts, self.window
        x = x.reshape(*x.shape[:2], nh, nt, nw, t, h, w, -1).transpose(1, 3, 5, 2, 6, 4, 7, 0, 8)
        return x.reshape(len(x), *self.grid, -1)

    def token_mask(self) -> np.ndarray | None:
        """True where a slot of a window holds a token, `[windows, n]`; None when there is no padding."""
        if not any(self.padding):
            return None
        (nt, nh, nw), (t, h, w) = self.counts, self.window
        real = np.pad(np.ones(self.grid, bool), [(0, extra) for extra in self.padding])
        return real.reshape(nt, t, nh, h, nw, w).transpose(2, 0, 4, 1, 3, 5).reshape(nh * nt * nw, t * h * w)

    def of_frames(self, x: Float[Array, "B G *rest"]) -> Float[Array, "B windows *rest"]:
        """What belongs to a frame (or, with G = 1, to all of them) for each window, of one frame."""
        nt, nh, nw = self.counts
        each = jnp.repeat(x, nt // x.shape[1], axis=1)
        spread = jnp.broadcast_to(each[:, None, :, None], (x.shape[0], nh, nt, nw, *x.shape[2:]))
        return spread.reshape(x.shape[0], nh * nt * nw, *x.shape[2:])

    def divided_over(self, devices: int) -> Literal["windows", "queries"] | None:
        """What of a layer is divided over so many devices: whole windows, or the queries of each; None if neither can be."""
        if self.number % devices == 0:
            return "windows"
        return "queries" if self.tokens % devices == 0 else None


class RelativePositionBias(nnx.Module):
    """One learned number per head and offset (key minus query) along time, height and width, as in Swin."""

    def __init__(self, window: Size3, heads: int, rngs: nnx.Rngs):
        self.table = nnx.Param(small_normal(rngs.params(), (heads, *(2 * side - 1 for side in window)), jnp.float32))

    def __call__(self, window: Size3, dtype: jnp.dtype | type = jnp.float32) -> Float[Array, "heads n n"]:
        """In `dtype`, the bias of every (query, key) pair of a window, at most as large as the one the table was made for."""
        # A product with a 0/1 matrix per axis: a gather's gradient is a scatter, slow on every platform, and shifting rows
        # by reshapes ("skew") took a TPU longer than the rest of the attention.
        bias = self.table[...].astype(dtype)
        for axis, side in enumerate(window):
            bias = jnp.tensordot(
                bias,
                jnp.asarray(_pairs(self.table.shape[1 + axis], side), dtype),
                axes=(1, 0),
                precision=jax.lax.Precision.HIGHEST,
            )
        # Now [heads, query and key along time, along height, along width].
        bias = bias.reshape(bias.shape[0], *(side for side in window for _ in range(2)))
        n = math.prod(window)
        return bias.transpose(0, 1, 3, 5, 2, 4, 6).reshape(bias.shape[0], n, n)


def _pairs(offsets: int, side: int) -> Bool[np.ndarray, "offsets pairs"]:
    """Whether an offset of a table of so many is that of a (query, key) pair of `side` places."""
    place = np.arange(side)
    return np.arange(offsets)[:, None] == (place[None, :] - place[:, None]).ravel() + offsets // 2
