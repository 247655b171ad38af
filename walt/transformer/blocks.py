"""One transformer layer, and the unit that the stack repeats: a spatial and a spatiotemporal layer, or one layer."""

from __future__ import annotations

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from walt.parallel.activations import constrain
from walt.transformer.attention import CrossAttention, WindowAttention
from walt.transformer.conditioning import LayerModulation, modulate
from walt.transformer.config import Size3, TransformerConfig
from walt.transformer.layers import Linear, layer_norm


class Context(NamedTuple):
    """What every layer sees beside the tokens. `G` is 1 or F; `shared_modulation` is None unless layers share one, `text` without cross-attention."""

    condition: Float[Array, "B F d"]
    shared_modulation: Float[Array, "B F m"] | None
    is_image: Bool[Array, " B"]
    text: Float[Array, "B G L d"] | None
    text_mask: Bool[Array, "B G L"] | None


class MLP(nnx.Module):
    """Two linear maps around a GELU (tanh form, as in DiT)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        hidden = config.mlp_ratio * config.width
        self.up = Linear(config.width, hidden, rngs, dtype=config.dtype, axes=(None, "mlp"))
        self.down = Linear(hidden, config.width, rngs, dtype=config.dtype, axes=("mlp", None))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class Layer(nnx.Module):
    """Window attention, cross-attention if there is text, MLP; each added to the residual stream."""

    def __init__(self, config: TransformerConfig, window: Size3, rngs: nnx.Rngs):
        self.modulation = LayerModulation(config, rngs)
        self.attention = WindowAttention(config, window, rngs)
        reads = config.text_width is not None and config.adaln != "none"  # else text stands among the tokens
        self.cross_attention = CrossAttention(config, rngs) if reads else None
        self.mlp = MLP(config, rngs)
        self.spans_time = window[0] > 1

    def __call__(self, x: Float[Array, "B F h w d"], context: Context) -> Float[Array, "B F h w d"]:
        with jax.named_scope("modulation"):
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(
                context.condition, context.shared_modulation
            )
            modulated = modulate(x, shift, scale)
        with jax.named_scope("attention"):
            x = x + gate.astype(x.dtype) * self.attention(modulated, identity=self._identity(context))
        if self.cross_attention is not None and context.text is not None and context.text_mask is not None:
            with jax.named_scope("cross_attention"):
                x = x + self.cross_attention(layer_norm(x), context.text, context.text_mask)
        with jax.named_scope("modulation"):
            modulated = modulate(x, mlp_shift, mlp_scale)
        with jax.named_scope("mlp"):
            x = x + mlp_gate.astype(x.dtype) * self.mlp(modulated)
        return constrain(x, "batch", None, "context", None, None)

    def _identity(self, context: Context) -> Bool[Array, " B"] | None:
        return context.is_image if self.spans_time else None


class Pair(nnx.Module):
    """A spatial layer, then a spatiotemporal one if there are any: the unit of the stack and of rematerialisation."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, *, joins: bool = False):
        """`joins`: takes a long skip, as U-ViT's second half does, through a map of both streams side by side."""
        self.join = Linear(2 * config.width, config.width, rngs, dtype=config.dtype) if joins else None
        window = config.spatial_window if config.adaln != "none" else (1, 1, sys.maxsize)  # one row: see `Transformer`
        self.spatial = Layer(config, window, rngs)
        self.spacetime = None if config.spacetime_window is None else Layer(config, config.spacetime_window, rngs)

    def __call__(
        self, x: Float[Array, "B F h w d"], context: Context, skip: Float[Array, "B F h w d"] | None = None
    ) -> Float[Array, "B F h w d"]:
        if self.join is not None:
            assert skip is not None
            x = self.join(jnp.concatenate([x, skip], axis=-1))
        x = self.spatial(x, context)
        return x if self.spacetime is None else self.spacetime(x, context)
