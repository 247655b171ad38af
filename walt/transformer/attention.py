"""Windowed self-attention, and cross-attention from the tokens of a window to that window and a caption."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from walt.parallel.activations import axis_size, constrain
from walt.transformer.config import Size3, TransformerConfig
from walt.transformer.layers import Initializer, Linear, NormScale, at_least_float32, head_norm, xavier, zeros
from walt.transformer.windows import RelativePositionBias, Windows

SCORES_IN_CACHE = (
    2**20
)  # float32 numbers; of the sizes tried, within a fifth of the fastest for 64 to 1,280 tokens a window


def attend(
    query: Float[Array, "B W q heads d"],
    key: Float[Array, "B W k heads d"],
    value: Float[Array, "B W k heads d"],
    *,
    bias: Float[Array, "heads q k"] | None = None,
    mask: Bool[Array, "#B W k"] | None = None,
) -> Float[Array, "B W q heads d"]:
    """Dense attention inside every window; `query` is already scaled.

    `bias` is added to the scores, `mask` (True = may be seen) hides keys. Scores and softmax are at least float32.
    """
    mixed = jax.lax.platform_dependent(
        *(jnp.moveaxis(x, -2, 0) for x in (query, key, value)), bias, mask, cpu=_attend_by_groups, default=_attend
    )
    return jnp.moveaxis(mixed, 0, -2)


def _attend(
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


def _attend_by_groups(query: Array, key: Array, value: Array, bias: Array | None, mask: Array | None) -> Array:
    """As many heads at a time as have scores that stay in a CPU's cache, which the backward pass computes again: at 5x16x16 tokens and width 1024
    full attention takes 0.3 of the time, windows half (`bench_transformer.py --attention`)."""
    heads, batch, windows, queries, _ = query.shape
    fitting = max(1, SCORES_IN_CACHE // (batch * windows * queries * key.shape[-2]))
    group = max(size for size in range(1, heads + 1) if heads % size == 0 and size <= fitting)
    if group == heads:
        return _attend(query, key, value, bias, mask)

    @jax.checkpoint
    def attend_group(each: tuple[Array, Array, Array, Array | None]) -> Array:
        query, key, value, bias = each
        return _attend(query, key, value, bias, mask)

    grouped = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (query, key, value, bias))
    mixed = jax.lax.map(attend_group, grouped)
    return mixed.reshape(query.shape[:-1] + value.shape[-1:])


def divided(tokens: Float[Array, "B W n d"], windows: Windows) -> Float[Array, "B W n d"]:
    """Tokens with their windows, or the places in each, divided over the devices of one example."""
    by = windows.divided_over(axis_size("context"))
    return constrain(
        tokens, "batch", "context" if by == "windows" else None, "context" if by == "queries" else None, None
    )


def whole_windows(x: Float[Array, "B W n heads d"], windows: Windows) -> Float[Array, "B W n heads d"]:
    """Keys or values of whole windows: gathered where only queries are divided."""
    by = windows.divided_over(axis_size("context"))
    return constrain(x, "batch", "context" if by == "windows" else None, None, "heads", None)


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

    def queries(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch heads head_width"]:
        """Normalised and scaled. Both learned scales and 1/sqrt(head width) act here, since (q·s)ᵀ(k·r) = (q·s·r)ᵀk and there are fewer queries."""
        query = self.query(x)
        wide, head_width = at_least_float32(query), x.shape[-1] // self.heads
        scale: Array | float = head_width**-0.5
        if self.query_norm is not None and self.key_norm is not None:
            wide = head_norm(query, self.heads)
            scale = scale * jnp.tile(self.query_norm.scale[...] * self.key_norm.scale[...], self.heads)
        return self._by_head((wide * scale).astype(query.dtype))

    def keys(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch heads head_width"]:
        """Normalised; for their scale see `queries`."""
        key = self.key(x)
        return self._by_head(key if self.key_norm is None else head_norm(key, self.heads).astype(key.dtype))

    def values(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch heads head_width"]:
        return self._by_head(self.value(x))

    def projected(self, mixed: Float[Array, "*batch heads head_width"]) -> Float[Array, "*batch d"]:
        return self.out(mixed.reshape(*mixed.shape[:-2], -1))

    def _by_head(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch heads head_width"]:
        return x.reshape(*x.shape[:-1], self.heads, -1)


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
        tokens, real = divided(windows.split(x), windows), windows.token_mask()
        value = whole_windows(self.values(tokens), windows)
        wide = jnp.promote_types(value.dtype, jnp.float32)
        mixed = attend(
            self.queries(tokens),
            whole_windows(self.keys(tokens), windows),
            value,
            bias=None if self.relative_bias is None else self.relative_bias(windows.window, wide),
            mask=None if real is None else jnp.asarray(real)[None],
        )
        if identity is not None:
            mixed = jnp.where(identity[:, None, None, None, None], value, mixed)
        return windows.merge(self.projected(mixed))


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
        tokens, real = divided(windows.split(x), windows), windows.token_mask()
        key, value = (
            jnp.concatenate([whole_windows(project(tokens), windows), windows.of_frames(project(text))], axis=2)
            for project in (self.keys, self.values)
        )
        seen_tokens = jnp.broadcast_to(True if real is None else real, tokens.shape[:3])
        mask = jnp.concatenate([seen_tokens, windows.of_frames(text_mask)], axis=-1)
        return windows.merge(self.projected(attend(self.queries(tokens), key, value, mask=mask)))
