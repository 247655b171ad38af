"""Windowed self-attention, and cross-attention from the tokens of a window to that window and a caption."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from walt.transformer.config import Size3, TransformerConfig
from walt.transformer.layers import Linear, ScaleNorm, at_least_float32, zeros
from walt.transformer.windows import RelativePositionBias, Windows


def attend(
    query: Float[Array, "B H W q d"],
    key: Float[Array, "B H W k d"],
    value: Float[Array, "B H W k d"],
    *,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "B H W q d"]:
    """Dense attention inside every window; `query` is already scaled.

    `bias` is added to the scores and `mask` (True = may be seen) hides keys; both broadcast to `[B, H, W, q, k]`. Scores and softmax are at least float32.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhwqd,bhwkd->bhwqk", query, key, preferred_element_type=wide)
    if bias is not None:
        scores = scores + bias.astype(wide)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhwqk,bhwkd->bhwqd", weights, value)


class WindowAttention(nnx.Module):
    """Self-attention inside windows with relative position bias and QK-LayerNorm per head."""

    def __init__(self, config: TransformerConfig, window: Size3, rngs: nnx.Rngs):
        self.heads, self.largest = config.heads, window
        width, dtype = config.width, config.dtype
        self.query = Linear(width, width, rngs, dtype=dtype)
        self.key = Linear(width, width, rngs, dtype=dtype)
        self.value = Linear(width, width, rngs, dtype=dtype)
        self.out = Linear(width, width, rngs, dtype=dtype)
        self.query_norm = ScaleNorm(width // config.heads) if config.qk_norm else None
        self.key_norm = ScaleNorm(width // config.heads) if config.qk_norm else None
        self.relative_bias = RelativePositionBias(window, config.heads, rngs)

    def __call__(
        self, x: Float[Array, "B T H W d"], *, identity: Bool[Array, " B"] | None = None
    ) -> Float[Array, "B T H W d"]:
        """Rows where `identity` is True attend to nothing but themselves: every token's output is its own value, projected."""
        windows = Windows(grid=(x.shape[1], x.shape[2], x.shape[3]), largest=self.largest)
        query = scaled(normed(windows.split(self.query(x), self.heads), self.query_norm))
        key = normed(windows.split(self.key(x), self.heads), self.key_norm)
        value = windows.split(self.value(x), self.heads)
        real = windows.token_mask()
        mask = None if real is None else jnp.asarray(real)[None, None, :, None, :]
        mixed = attend(query, key, value, bias=self.relative_bias(windows.window)[None, :, None], mask=mask)
        if identity is not None:
            mixed = jnp.where(identity[:, None, None, None, None], value, mixed)
        return self.out(windows.merge(mixed))


class CrossAttention(nnx.Module):
    """Tokens attend to the tokens of their own spatial window and to their frame's caption, through one key and one value map for both.

    No relative bias (choice). The output map starts at zero, so that the layer starts as the identity (choice; this attention has no gate).
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.heads, self.largest = config.heads, config.spatial_window
        width, dtype = config.width, config.dtype
        self.query = Linear(width, width, rngs, dtype=dtype)
        self.key = Linear(width, width, rngs, dtype=dtype)
        self.value = Linear(width, width, rngs, dtype=dtype)
        self.out = Linear(width, width, rngs, dtype=dtype, initializer=zeros)
        self.query_norm = ScaleNorm(width // config.heads) if config.qk_norm else None
        self.key_norm = ScaleNorm(width // config.heads) if config.qk_norm else None

    def __call__(
        self, x: Float[Array, "B T H W d"], text: Float[Array, "B G L d"], text_mask: Bool[Array, "B G L"]
    ) -> Float[Array, "B T H W d"]:
        """`G` is 1 (one caption for the row) or T (one per frame); `text_mask` is True on real text tokens."""
        windows = Windows(grid=(x.shape[1], x.shape[2], x.shape[3]), largest=self.largest)
        repeats = windows.counts[0] * windows.counts[1] * windows.counts[2] // text.shape[1]
        query = scaled(normed(windows.split(self.query(x), self.heads), self.query_norm))
        key, value = (self._with_text(layer, windows, x, text, repeats) for layer in (self.key, self.value))
        key = normed(key, self.key_norm)
        padding = windows.token_mask()
        real = jnp.ones((query.shape[2], windows.tokens), bool) if padding is None else jnp.asarray(padding)
        seen_text = jnp.repeat(text_mask, repeats, axis=1)
        seen_tokens = jnp.broadcast_to(real[None], (x.shape[0], *real.shape))
        mask = jnp.concatenate([seen_tokens, seen_text], axis=-1)[:, None, :, None, :]
        return self.out(windows.merge(attend(query, key, value, mask=mask)))

    def _with_text(self, layer: Linear, windows: Windows, x: Array, text: Array, repeats: int) -> Array:
        """`layer` of the tokens of every window followed by `layer` of its caption, heads first."""
        batch, captions, length, width = text.shape
        words = layer(text).reshape(batch, captions, length, self.heads, width // self.heads).transpose(0, 3, 1, 2, 4)
        return jnp.concatenate([windows.split(layer(x), self.heads), jnp.repeat(words, repeats, axis=2)], axis=-2)


def normed(x: Array, norm: ScaleNorm | None) -> Array:
    return x if norm is None else norm(x)


def scaled(query: Array) -> Array:
    """The usual 1/sqrt(head width), on the queries because they are smaller than the scores."""
    return (at_least_float32(query) * query.shape[-1] ** -0.5).astype(query.dtype)
