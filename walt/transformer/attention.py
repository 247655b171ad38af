"""Windowed self-attention, and cross-attention from the tokens of a window to that window and a caption."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from walt.parallel.activations import axis_size, constrain, on_each_device
from walt.transformer.config import Size3, TransformerConfig
from walt.transformer.layers import Initializer, Linear, NormScale, at_least_float32, head_norm, xavier, zeros
from walt.transformer.window_kernel import Shared, Tokens, attend_in_windows, supports
from walt.transformer.windows import RelativePositionBias, Windows

SCORES_IN_CACHE = (
    2**20
)  # float32 numbers; of the sizes tried, within a fifth of the fastest for 64 to 1,280 tokens a window


def attend(
    tokens: Tokens, shared: Shared, *, heads: int, norm: bool = False, windows: Windows | None = None
) -> Float[Array, "B W n d"]:
    """Dense attention inside every window of every row; `windows` says what is divided over the devices of a mesh.

    With `norm`, queries and keys are normalised per head. Norms, scores and softmax are at least float32.
    """
    by_head = partial(_attend_by_head, heads=heads, norm=norm)
    on_tpu = partial(_attend_on_tpu, heads=heads, norm=norm, windows=windows)
    return jax.lax.platform_dependent(
        tokens,
        shared,
        cpu=partial(by_head, mix_heads=_mix_in_groups),
        tpu=on_tpu,
        default=partial(by_head, mix_heads=mix),
    )


def _attend_on_tpu(tokens: Tokens, shared: Shared, *, heads: int, norm: bool, windows: Windows | None) -> Array:
    """In the kernel where a core's memory holds a window with its scores, on each device for its own rows, windows and heads."""
    tensor = axis_size("heads")
    by = None if windows is None else windows.divided_over(axis_size("context"))
    queries_over = axis_size("context") if by == "queries" else 1
    if not supports(tokens, shared, heads_over=tensor, queries_over=queries_over) or (
        by == "queries" and tokens.identity is not None
    ):
        return _attend_by_head(tokens, shared, heads=heads, norm=norm, mix_heads=mix)
    window, place = ("context" if by == each else None for each in ("windows", "queries"))
    query, key, per_window = (
        ("batch", window, place, "heads"),
        ("batch", window, None, "heads"),
        ("batch", window, None, None),
    )
    vector = (None, "heads")

    def kernel(tokens: Tokens, shared: Shared) -> Array:
        by_window = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tokens)
        return attend_in_windows(by_window, shared, heads=heads // tensor, norm=norm).reshape(tokens.query.shape)

    axes = (
        Tokens._make((query, (key,) * len(tokens.key), (key,) * len(tokens.value), per_window, per_window)),
        Shared._make(((vector,) * 3, vector, ("heads", place, None))),
    )
    return on_each_device(kernel, (tokens, shared), axes, query)


def _attend_by_head(
    tokens: Tokens, shared: Shared, *, heads: int, norm: bool, mix_heads: Callable[..., Array]
) -> Array:
    parts = ((tokens.query,), tokens.key, tokens.value)
    query, key, value = (
        jnp.concatenate(part, axis=2) + offset.astype(part[0].dtype)
        for part, offset in zip(parts, shared.offsets, strict=True)
    )
    if norm:
        query, key = head_norm(query, heads), head_norm(key, heads).astype(key.dtype)
    query = (at_least_float32(query) * shared.scale).astype(value.dtype)
    q, k, v = (jnp.moveaxis(x.reshape(*x.shape[:-1], heads, -1), -2, 0) for x in (query, key, value))
    mask = None if tokens.mask is None else tokens.mask[:, :, 0] > 0
    mixed = jnp.moveaxis(mix_heads(q, k, v, shared.bias, mask), 0, -2).reshape(query.shape)
    return mixed if tokens.identity is None else jnp.where(tokens.identity[..., :1] > 0, value, mixed)


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


def divided(x: Float[Array, "B W n d"], windows: Windows, features: str | None = None) -> Float[Array, "B W n d"]:
    """With its windows, or the places in each, divided over the devices of one example.

    Said of what products give as well as of what they are given: where the compiler was left to find it out, it summed the gradient of weights over
    `context` and forgot the rows (jax 0.10.2).
    """
    by = windows.divided_over(axis_size("context"))
    window, place = ("context" if by == each else None for each in ("windows", "queries"))
    return constrain(x, "batch", window, place, features)


def whole_windows(x: Float[Array, "B W n d"], windows: Windows) -> Float[Array, "B W n d"]:
    """Keys or values of whole windows: gathered where only queries are divided."""
    # As it was computed first, or the compiler gathers tokens instead, and each device projects all of them.
    x, by = divided(x, windows, "heads"), windows.divided_over(axis_size("context"))
    return constrain(x, "batch", "context" if by == "windows" else None, None, "heads")


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
        tokens: Float[Array, "B W n d"],
        windows: Windows,
        *,
        text: Float[Array, "B G L d"] | None = None,
        bias: Float[Array, "heads n m"] | None = None,
        mask: Bool[Array, "#B W m"] | None = None,
        identity: Bool[Array, " B"] | None = None,
    ) -> Float[Array, "B W n d"]:
        """What tokens see of their window and of the text of its frame, projected. `mask` is over both; `identity` is of rows."""

        def parts(project: Linear) -> tuple[Array, ...]:
            own = whole_windows(project.product(tokens), windows)
            return (own,) if text is None else (own, windows.of_frames(project.product(text)))

        def per_window(flags: Array, size: int) -> Array:
            return jnp.broadcast_to(flags, (*tokens.shape[:2], size))[:, :, None].astype(jnp.int32)

        inputs = Tokens(
            divided(self.query.product(tokens), windows, "heads"),
            parts(self.key),
            parts(self.value),
            None if mask is None else per_window(mask, mask.shape[-1]),
            None if identity is None else per_window(identity[:, None, None], 1),
        )
        offsets = self.query.offset[None], self.key.offset[None], self.value.offset[None]
        shared = Shared(offsets, self.scale[None], bias)
        mixed = attend(inputs, shared, heads=self.heads, norm=self.query_norm is not None, windows=windows)
        return divided(self.out(checkpoint_name(mixed, "attention")), windows)

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
        tokens, real = divided(windows.split(by_rows(x)), windows), windows.token_mask()
        wide = at_least_float32(tokens).dtype
        bias = None if self.relative_bias is None else self.relative_bias(windows.window, wide)
        mask = None if real is None else jnp.asarray(real)[None]
        return by_rows(windows.merge(self.attend(tokens, windows, bias=bias, mask=mask, identity=identity)))


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
        tokens, real = divided(windows.split(by_rows(x)), windows), windows.token_mask()
        seen_tokens = jnp.broadcast_to(True if real is None else real, tokens.shape[:3])
        mask = jnp.concatenate([seen_tokens, windows.of_frames(text_mask)], axis=-1)
        return by_rows(windows.merge(self.attend(tokens, windows, text=text, mask=mask)))
