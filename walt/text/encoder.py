"""A T5-style text encoder (Raffel et al., arXiv 1910.10683; gated GELU and no biases as in version 1.1).

Here it is small and trained with the transformer; the frozen T5-XL is another value of the same config.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.text.bert import Bert
from walt.text.config import TextEncoderConfig

__all__ = ["TextEncoder", "TextEncoderConfig", "make_encoder"]


class TextEncoder(nnx.Module):
    """Token ids to embeddings; deterministic, keeps no random state."""

    def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        table = jax.random.normal(rngs.params(), (config.vocab_size, config.width)) * config.width**-0.5
        self.embedding = nnx.Param(table)
        bias = jax.random.normal(rngs.params(), (config.relative_buckets, config.heads)) * config.width**-0.5
        self.relative_bias = nnx.Param(bias)
        self.layers = nnx.List([EncoderLayer(config, rngs) for _ in range(config.depth)])
        self.norm = RMSNorm(config.width)

    def __call__(self, ids: Int[Array, "n l"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        """Embeddings in at least float32. Padded tokens (mask False) influence no other token."""
        x = self.embedding[...][ids].astype(self.config.dtype)
        buckets = relative_buckets(ids.shape[1], self.config.relative_buckets, self.config.relative_distance)
        bias = self.relative_bias[...][buckets].transpose(2, 0, 1)[None]
        scores = jnp.where(mask[:, None, None, :], bias, jnp.finfo(bias.dtype).min)
        for layer in self.layers:
            x = layer(x, scores)
        return at_least_float32(self.norm(x))


class EncoderLayer(nnx.Module):
    """Self-attention without scaling (T5 folds it into the initialisation), then a gated GELU."""

    def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
        inner = config.heads * config.head_width
        self.heads, dtype = config.heads, config.dtype
        self.attention_norm = RMSNorm(config.width)
        self.query = Linear(config.width, inner, dtype, rngs, scale=config.head_width**-0.5)
        self.key = Linear(config.width, inner, dtype, rngs)
        self.value = Linear(config.width, inner, dtype, rngs)
        self.out = Linear(inner, config.width, dtype, rngs)
        self.mlp_norm = RMSNorm(config.width)
        self.gate = Linear(config.width, config.mlp_width, dtype, rngs)
        self.up = Linear(config.width, config.mlp_width, dtype, rngs)
        self.down = Linear(config.mlp_width, config.width, dtype, rngs)

    def __call__(self, x: Float[Array, "n l d"], bias: Float[Array, "#n h l l"]) -> Float[Array, "n l d"]:
        y = self.attention_norm(x)
        query, key, value = (self._split(layer(y)) for layer in (self.query, self.key, self.value))
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key, preferred_element_type=at_least_float32(x).dtype) + bias
        mixed = jnp.einsum("nhqk,nhkd->nhqd", jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)
        x = x + self.out(mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))
        y = self.mlp_norm(x)
        return x + self.down(jax.nn.gelu(self.gate(y), approximate=True) * self.up(y))

    def _split(self, x: Float[Array, "n l i"]) -> Float[Array, "n h l d"]:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)


class Linear(nnx.Module):
    """A product without bias, flattened to two dimensions: XLA's CPU weight gradient of a higher rank is several times slower."""

    def __init__(self, in_features: int, out_features: int, dtype: str, rngs: nnx.Rngs, scale: float = 1.0):
        kernel = jax.random.normal(rngs.params(), (in_features, out_features)) * scale * in_features**-0.5
        self.kernel = nnx.Param(kernel)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n l i"]) -> Float[Array, "n l o"]:
        rows = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return rows.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Division by the root mean square, in float32, and a learned scale."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        wide = at_least_float32(x)
        y = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
        return (y * self.scale[...]).astype(x.dtype)


def make_encoder(config: TextEncoderConfig, rngs: nnx.Rngs) -> TextEncoder | Bert:
    """The encoder of the config's architecture."""
    return Bert(config, rngs) if config.architecture == "bert" else TextEncoder(config, rngs)


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own dtype if that is wider (float64 equality tests)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def relative_buckets(length: int, buckets: int, distance: int) -> Int[np.ndarray, "l l"]:
    """T5's bucket of key position minus query position, both directions: exact while near, logarithmic up to `distance`."""
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    near = half // 2
    size = np.abs(offset)
    far = near + np.log(np.maximum(size, 1) / near) / math.log(distance / near) * (half - near)
    bucket = np.where(size < near, size, np.minimum(far.astype(np.int64), half - 1))
    return bucket + np.where(offset > 0, half, 0)
