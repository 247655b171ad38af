"""Windowed self-attention, and cross-attention from the tokens of a window to that window and a caption."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.parallel import tpu
from walt.parallel.activations import axis_size, constrain, on_each_device
from walt.transformer.config import Size3, TransformerConfig
from walt.transformer.layers import (
    Initializer,
    Linear,
    NormScale,
    at_least_float32,
    head_norm,
    part_of,
    side_by_side,
    xavier,
    zeros,
)
from walt.transformer.window_kernel import Shared, Tokens, attend_in_windows, supports
from walt.transformer.windows import RelativePositionBias, Windows

SCORES_IN_CACHE = (
    2**20
)  # float32 numbers; of the sizes tried, within a fifth of the fastest for 64 to 1,280 tokens a window


def attend(
    tokens: Tokens, shared: Shared, windows: Windows, *, heads: int, norm: bool = False
) -> Float[Array, "B T H W d"]:
    """Dense attention inside every window of every row. `windows` fill the grid of the tokens.

    With `norm`, queries and keys are normalised per head. Norms, scores and softmax are at least float32.
    """
    by_head = partial(_attend_by_head, windows=windows, heads=heads, norm=norm)
    on_tpu = partial(_attend_on_tpu, windows=windows, heads=heads, norm=norm)
    return jax.lax.platform_dependent(
        tokens,
        shared,
        cpu=partial(by_head, mix_heads=_mix_in_groups),
        tpu=on_tpu,
        default=partial(by_head, mix_heads=mix),
    )


def _attend_on_tpu(tokens: Tokens, shared: Shared, *, windows: Windows, heads: int, norm: bool) -> Array:
    """In the kernel where a core's memory holds a window with its scores, on each device for its own rows, windows and heads."""
    tensor, (frames, rows, places) = axis_size("heads"), axes_of(windows)
    if places is not None or not supports(tokens, shared.bias, windows, heads_over=tensor):
        if windows == windows.apart:
            return _attend_by_head(tokens, shared, windows=windows, heads=heads, norm=norm, mix_heads=mix)
        # Whole tiles, if not where they lie in the grid.
        words = None if tokens.caption is None else windows.of_frames(tokens.caption)
        apart = tokens._replace(own=windows.split(tokens.own), caption=words)
        return windows.merge(_attend_on_tpu(apart, shared, windows=windows.apart, heads=heads, norm=norm))
    own = ("batch", frames, rows, None, "heads")
    of_frames = None if tokens.caption is None or tokens.caption.shape[1] == 1 else frames
    axes = (
        Tokens._make(
            (own, ("batch", of_frames, None, "heads"), ("batch", rows or frames, None, None), ("batch", None, None))
        ),
        Shared._make((((None, "heads"),) * 3, (None, "heads"), ("heads", None, None))),
    )

    def kernel(tokens: Tokens, shared: Shared) -> Array:
        (t, h, w), window = tokens.own.shape[1:4], windows.window
        return attend_in_windows(tokens, shared, Windows((t, h, w), window), heads=heads // tensor, norm=norm)

    return on_each_device(kernel, (tokens, shared), axes, own)


def _attend_by_head(
    tokens: Tokens,
    shared: Shared,
    *,
    windows: Windows,
    heads: int,
    norm: bool,
    mix_heads: Callable[..., Array],
) -> Array:
    parts: list[Array] = []
    for part, offset in enumerate(shared.offsets):
        own = part_of(tokens.own, part, 3)
        # Keys and values of whole windows: gathered where queries are divided, and computed first, or all devices would compute all of them.
        own = divided(divided(own, windows, "heads"), windows, "heads", whole=part > 0) + offset.astype(own.dtype)
        words = None
        if tokens.caption is not None and part:
            words = part_of(tokens.caption, part - 1, 2) + offset.astype(own.dtype)
        if norm and part < 2:
            own, words = head_norm(own, heads), None if words is None else head_norm(words, heads).astype(words.dtype)
        if part == 0:
            own = at_least_float32(own) * shared.scale
        own = windows.by_head(own.astype(tokens.own.dtype), heads)
        if words is not None:
            words = jnp.moveaxis(windows.of_frames(words).reshape(*own.shape[1:3], -1, heads, own.shape[-1]), -2, 0)
            own = jnp.concatenate([own, words], axis=3)
        parts.append(own)
    query, key, value = parts
    mask = None if tokens.mask is None else tokens.mask[:, :, 0] > 0
    mixed = windows.of_heads(mix_heads(query, key, value, shared.bias, mask))
    if tokens.identity is None:
        return mixed
    own = part_of(tokens.own, 2, 3)
    return jnp.where(tokens.identity[..., None, None] > 0, own + shared.offsets[2].astype(own.dtype), mixed)


def mix(
    query: Float[Array, "heads B W q d"],
    key: Float[Array, "heads B W k d"],
    value: Float[Array, "heads B W k d"],
    bias: Float[Array, "heads q k"] | None,
    mask: Bool[Array, "#B W k"] | None,
) -> Float[Array, "heads B W q d"]:
    """Weights are normalised after they have mixed the values, which is less work and keeps every platform's compiler from doing part of it twice;
    by the sum of what is mixed, so that rounding to bfloat16 leaves it a mean."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("hbwqd,hbwkd->hbwqk", query, key, preferred_element_type=wide)
    if bias is not None:
        scores = scores + bias[:, None, None]
    if mask is not None:
        scores = jnp.where(mask[:, :, None], scores, jnp.finfo(wide).min)
    largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - largest).astype(value.dtype)
    mixed = jnp.einsum("hbwqk,hbwkd->hbwqd", weights, value)
    return (mixed / weights.astype(wide).sum(-1, keepdims=True)).astype(value.dtype)


def _mix_in_groups(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """As many heads at a time as have scores that stay in a CPU's cache, which the backward pass computes again: at 5x16x16 tokens and width 1024
    full attention takes 0.3 of the time, windows half (`bench_transformer.py --attention`)."""
    heads, batch, windows, queries, _ = query.shape
    fitting = max(1, SCORES_IN_CACHE // (batch * windows * queries * key.shape[-2]))
    group = max(size for size in range(1, heads + 1) if heads % size == 0 and size <= fitting)
    if group == heads:
        return mix(query, key, value, bias, mask)

    @jax.checkpoint
    def attend_group(each: tuple[Array, Array, Array, Array | None]) -> Array:
        query, key, value, bias = each
        return mix(query, key, value, bias, mask)

    grouped = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (query, key, value, bias))
    mixed = jax.lax.map(attend_group, grouped)
    return mixed.reshape(query.shape[:-1] + value.shape[-1:])


def by_rows(x: Float[Array, "B T H W d"]) -> Float[Array, "B T H W d"]:
    """Tokens in their grid, whose rows are divided over the devices of one example; said on both sides of the exchange between rows and windows, so
    that nothing but tokens is exchanged."""
    return constrain(x, "batch", None, "context", None, None)


def axes_of(windows: Windows) -> tuple[str | None, str | None, str | None]:
    """Which axis of the grid of windows is divided over the devices of one example: rows, in whole bands of windows; or, of windows one after another,
    these; or the tokens of each."""
    devices, counts = axis_size("context"), windows.counts
    if counts[1] % devices == 0:
        return None, "context", None
    return ("context", None, None) if counts[0] % devices == 0 else (None, None, "context")


def divided(
    x: Float[Array, "B T H W d"], windows: Windows, features: str | None = None, *, whole: bool = False
) -> Float[Array, "B T H W d"]:
    """With tokens divided over the devices of one example as `axes_of` says; `whole`: in whole windows.

    Said of what products give as well as of what they are given: where the compiler was left to find it out, it summed the gradient of weights over
    `context` and forgot the rows (jax 0.10.2).
    """
    frames, rows, places = axes_of(windows)
    return constrain(x, "batch", frames, rows, None if whole else places, features)


class Attention(nnx.Module):
    """What both kinds of attention share: four projections, and LayerNorm of queries and keys per head, with scale."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, *, out_initializer: Initializer = xavier):
        width, head_width = config.width, config.width // config.heads
        self.heads = config.heads
        self.query = Linear(width, width, rngs, dtype=config.dtype, axes=(None, "heads"))
        self.key = Linear(width, width, rngs, dtype=config.dtype, axes=(None, "heads"))
        self.value = Linear(width, width, rngs, dtype=config.dtype, axes=(None, "heads"))
        self.out = Linear(width, width, rngs, dtype=config.dtype, initializer=out_initializer, axes=("heads", None))
        self.query_norm = NormScale(head_width) if config.qk_norm else None
        self.key_norm = NormScale(head_width) if config.qk_norm else None

    def attend(
        self,
        x: Float[Array, "B T H W d"],
        windows: Windows,
        *,
        text: Float[Array, "B G L d"] | None = None,
        text_mask: Bool[Array, "B G L"] | None = None,
        bias: Float[Array, "heads n m"] | None = None,
        identity: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B T H W d"]:
        """What tokens see of their window and of the text of its frame, projected; rows of `identity` see nothing but themselves."""
        mask = self._mask(len(x), windows, text_mask)
        in_grid, x = self._stay_in_grid(x, text, bias, windows), by_rows(x)
        laid, tokens = (windows, x) if in_grid else (windows.apart, windows.split(x))
        own = side_by_side(divided(tokens, laid), (self.query, self.key, self.value))
        caption = None if text is None else side_by_side(text, (self.key, self.value))
        inputs = Tokens(
            divided(own, laid, "heads"),
            caption if in_grid or caption is None else windows.of_frames(caption),
            mask,
            None if identity is None else identity[:, None, None].astype(jnp.int32),
        )
        offsets = self.query.offset[None], self.key.offset[None], self.value.offset[None]
        shared = Shared(offsets, self.scale[None], bias)
        mixed = attend(inputs, shared, laid, heads=self.heads, norm=self.query_norm is not None)
        mixed = divided(self.out.kept_product(mixed, "attention"), laid)
        return by_rows(mixed if in_grid else windows.merge(mixed)) + self.out.offset.astype(mixed.dtype)

    def _stay_in_grid(self, x: Array, text: Array | None, bias: Array | None, windows: Windows) -> bool:
        """Whether tokens stay where they lie. On a TPU whose kernel cannot take them there they are cut into windows first: they are a third of their
        queries, keys and values."""
        if not windows.lie_in_grid(axis_size("context")):
            return False
        if tpu.core() is None:
            return True

        def like(array: Array, parts: int) -> Any:
            return jax.ShapeDtypeStruct((*array.shape[:-1], parts * x.shape[-1]), self.query.dtype)

        tokens = Tokens(like(x, 3), None if text is None else like(text, 2))
        return supports(tokens, bias, windows, heads_over=axis_size("heads"))

    def _mask(
        self, rows: int, windows: Windows, text_mask: Bool[Array, "B G L"] | None
    ) -> Int[Array, "B windows 1 m"] | None:
        """Over the tokens of a window and the words of its frame; None where all may be seen."""
        real = windows.token_mask()
        if real is None and text_mask is None:
            return None
        seen = np.ones((windows.number, windows.tokens), bool) if real is None else real
        mask = jnp.broadcast_to(seen, (rows, *seen.shape))
        if text_mask is not None:
            mask = jnp.concatenate([mask, windows.of_frames(text_mask)], axis=-1)
        return mask[:, :, None].astype(jnp.int32)

    @property
    def scale(self) -> Float[Array, " d"]:
        """Of queries. Both learned scales and 1/sqrt(head width) act there, since (q·s)ᵀ(k·r) = (q·s·r)ᵀk and there are fewer queries than keys."""
        width = self.query.kernel.shape[-1]
        factor = (width // self.heads) ** -0.5
        if self.query_norm is None or self.key_norm is None:
            return jnp.full(width, factor)
        return factor * jnp.tile(self.query_norm.scale[...] * self.key_norm.scale[...], self.heads)


class WindowAttention(Attention):
    """Self-attention inside windows, with relative position bias."""

    def __init__(self, config: TransformerConfig, window: Size3, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.largest = window
        self.relative_bias = RelativePositionBias(window, config.heads, rngs) if config.relative_bias else None

    def __call__(
        self, x: Float[Array, "B T H W d"], *, identity: Bool[Array, " B"] | None = None
    ) -> Float[Array, "B T H W d"]:
        """Rows where `identity` is True attend to nothing but themselves: every token's output is its own value, projected."""
        windows = Windows(grid=(x.shape[1], x.shape[2], x.shape[3]), largest=self.largest)
        bias = None if self.relative_bias is None else self.relative_bias(windows.window, at_least_float32(x).dtype)
        return self.attend(x, windows, bias=bias, identity=identity)


class CrossAttention(Attention):
    """Tokens attend to the tokens of their own window of their frame and to their frame's caption, through one key and one value map for both.

    No relative bias (choice). The output map starts at zero, so that the layer starts as the identity (choice; this attention has no gate).
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs, out_initializer=zeros)
        self.largest = (1, *config.spatial_window[1:])

    def __call__(
        self, x: Float[Array, "B T H W d"], text: Float[Array, "B G L d"], text_mask: Bool[Array, "B G L"]
    ) -> Float[Array, "B T H W d"]:
        """`G` is 1 (one caption for the row) or T (one per frame); `text_mask` is True on real text tokens."""
        windows = Windows(grid=(x.shape[1], x.shape[2], x.shape[3]), largest=self.largest)
        return self.attend(x, windows, text=text, text_mask=text_mask)
