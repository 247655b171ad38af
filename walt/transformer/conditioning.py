"""What the tokens are told: time, class and text, per latent frame; and the adaptive layer norms that time and class act through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.transformer.config import SCALARS, TransformerConfig
from walt.transformer.layers import Linear, layer_norm, small_normal, zeros

TIMESTEP_FEATURES = 256
MODULATIONS = 6  # shift, scale and gate, for attention and for the MLP


def sinusoidal_features(
    timestep: Float[Array, "*batch"], features: int = TIMESTEP_FEATURES
) -> Float[Array, "*batch features"]:
    """Cosines and sines of the timestep (already times 1000) at wavelengths 2π to 20000π, as in DiT; always at least float32."""
    half = features // 2
    timestep = timestep.astype(jnp.promote_types(timestep.dtype, jnp.float32))
    frequencies = jnp.exp(-math.log(10000.0) * jnp.arange(half, dtype=timestep.dtype) / half)
    angles = timestep[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ScalarEmbedding(nnx.Module):
    """A number per frame as a vector, through sinusoid and MLP; a learned vector where it is not told (NaN).

    The time of noise on low-resolution latents is always told.
    """

    def __init__(self, name: str, config: TransformerConfig, rngs: nnx.Rngs):
        width, dtype = config.width, config.wide_dtype
        self.factor = SCALARS[name]
        self.inner = Linear(TIMESTEP_FEATURES, width, rngs, dtype=dtype, initializer=small_normal)
        self.outer = Linear(width, width, rngs, dtype=dtype, initializer=small_normal)
        optional = name != "low_resolution_time"
        self.untold = nnx.Param(small_normal(rngs.params(), (width,), jnp.float32)) if optional else None

    def __call__(self, value: Float[Array, "B F"]) -> Float[Array, "B F d"]:
        told = ~jnp.isnan(value)
        features = sinusoidal_features(jnp.where(told, value, 0.0) * self.factor)
        vector = self.outer(jax.nn.silu(self.inner(features)))
        return vector if self.untold is None else jnp.where(told[..., None], vector, self.untold[...])


class Conditioning(nnx.Module):
    """Timestep (sinusoid and MLP), class and scalars, one vector per latent frame each; and the modulation map shared by all layers.

    Runs in at least float32 whatever the compute dtype: it is small, and timesteps up to 1000 do not survive bfloat16.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        width, dtype = config.width, config.wide_dtype
        self.num_classes = config.num_classes
        self.timestep_in = Linear(TIMESTEP_FEATURES, width, rngs, dtype=dtype, initializer=small_normal)
        self.timestep_out = Linear(width, width, rngs, dtype=dtype, initializer=small_normal)
        # The last row stands for "no class".
        self.class_table = (
            None
            if config.num_classes is None
            else nnx.Param(small_normal(rngs.params(), (config.num_classes + 1, width), jnp.float32))
        )
        self.scalars = nnx.Dict({name: ScalarEmbedding(name, config, rngs) for name in config.scalars})
        shares = config.adaln in ("shared", "lora")
        self.modulation = Linear(width, MODULATIONS * width, rngs, dtype=dtype, initializer=zeros) if shares else None

    def __call__(
        self,
        timestep: Float[Array, "B F"],
        class_label: Int[Array, "B F"] | None = None,
        drop_class: Bool[Array, "B F"] | None = None,
        scalars: Mapping[str, Float[Array, "B F"]] = MappingProxyType({}),
    ) -> tuple[Float[Array, "B F d"], ...]:
        """The vector of each condition: of the time, of the class if there are classes, of the scalars."""
        conditions = [self.timestep_out(jax.nn.silu(self.timestep_in(sinusoidal_features(timestep))))]
        if self.class_table is not None and self.num_classes is not None:
            if class_label is None:
                class_label = jnp.full(timestep.shape, self.num_classes)
            if drop_class is not None:
                class_label = jnp.where(drop_class, self.num_classes, class_label)
            conditions.append(self.class_table[...][class_label])
        untold = jnp.full(timestep.shape, jnp.nan, timestep.dtype)
        conditions += [embed(scalars.get(name, untold)) for name, embed in self.scalars.items()]
        return tuple(conditions)

    def shared_modulation(self, condition: Float[Array, "B F d"]) -> Float[Array, "B F m"] | None:
        """A_1 of AdaLN-LoRA, `[B, F, 6d]`; None where layers share nothing."""
        return None if self.modulation is None else self.modulation(jax.nn.silu(condition))


class LayerModulation(nnx.Module):
    """Shift, scale and gate of one layer: A_i = A_1 + W_b W_a (c + t) (W.A.L.T's AdaLN-LoRA), or A_1 itself, or an own map; or, where
    conditions are tokens, learned vectors and no gates.

    Maps are zero-initialised, gates included, so that every layer starts as the identity.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        width, rank, size, dtype = config.width, config.lora_rank, MODULATIONS * config.width, config.wide_dtype
        separate, low_rank = config.adaln == "separate", config.adaln == "lora"
        self.own = Linear(width, size, rngs, dtype=dtype, initializer=zeros) if separate else None
        self.down = Linear(width, rank, rngs, dtype=dtype, bias=False) if low_rank else None
        self.up = Linear(rank, size, rngs, dtype=dtype, bias=False, initializer=zeros) if low_rank else None
        self.affine = nnx.Param(jnp.zeros((4, width), jnp.float32)) if config.adaln == "none" else None

    def __call__(
        self, condition: Float[Array, "B F d"], shared: Float[Array, "B F m"] | None
    ) -> tuple[Float[Array, "B F 1 1 d"], ...]:
        if self.affine is not None:
            shift, scale, mlp_shift, mlp_scale = self.affine[...]
            return shift, scale, jnp.ones(()), mlp_shift, mlp_scale, jnp.ones(())
        if self.own is not None:
            modulation = self.own(jax.nn.silu(condition))
        else:
            assert shared is not None  # the model makes it unless every layer has its own
            modulation = shared
        if self.up is not None and self.down is not None:
            modulation = modulation + self.up(self.down(condition))
        return tuple(jnp.split(modulation[:, :, None, None, :], MODULATIONS, axis=-1))


def modulate(
    x: Float[Array, "B F h w d"], shift: Float[Array, "B F 1 1 d"], scale: Float[Array, "B F 1 1 d"]
) -> Float[Array, "B F h w d"]:
    """Adaptive layer norm: normalised tokens, scaled and shifted per frame."""
    return layer_norm(x) * (1 + scale.astype(x.dtype)) + shift.astype(x.dtype)


class Upsampler(nnx.Module):
    """Low-resolution latents at full size: a 3x3 convolution of every frame, then depth-to-space (W.A.L.T, section 5)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        assert config.low_resolution is not None
        self.factor, channels = config.low_resolution, config.out_channels
        shape = (3, 3, channels, channels * self.factor**2)
        self.kernel = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape[-1:], jnp.float32))

    def __call__(self, latents: Float[Array, "B F i j c"]) -> Float[Array, "B F h w c"]:
        b, f, i, j, channels = latents.shape
        frames = latents.reshape(b * f, i, j, channels)
        wide = jax.lax.conv_general_dilated(
            frames, self.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        wide = (wide + self.bias[...]).reshape(b, f, i, j, self.factor, self.factor, channels)
        return wide.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, f, i * self.factor, j * self.factor, channels)


class TextConditioning(nnx.Module):
    """Maps text embeddings to the token width, once for all layers, and holds the learned null text that stands for "no caption"."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        assert config.text_width is not None
        self.null_text = nnx.Param(small_normal(rngs.params(), (config.text_width,), jnp.float32))
        self.projection = Linear(config.text_width, config.width, rngs, dtype=config.dtype)

    def __call__(
        self,
        embeddings: Float[Array, "B C L D"],
        mask: Bool[Array, "B C L"],
        drop: Bool[Array, "B C"] | None,
        caption_index: Int[Array, "B F"] | None,
    ) -> tuple[Float[Array, "B G L d"], Bool[Array, "B G L"]]:
        """Text in token width and its mask: `G` is 1 when the row has one caption, else one entry per latent frame.

        A dropped caption becomes the null text with a one-token mask. The projected text is normalised (choice: T5's scale is not that of the tokens).
        """
        if drop is not None:
            embeddings = jnp.where(drop[..., None, None], self.null_text[...].astype(embeddings.dtype), embeddings)
            mask = jnp.where(drop[..., None], jnp.arange(mask.shape[-1]) == 0, mask)
        if embeddings.shape[1] > 1:
            assert caption_index is not None
            embeddings = jnp.take_along_axis(embeddings, caption_index[:, :, None, None], axis=1)
            mask = jnp.take_along_axis(mask, caption_index[:, :, None], axis=1)
        return layer_norm(self.projection(embeddings)), mask

    def null(self) -> Float[Array, " d"]:
        """The null text in token width."""
        return layer_norm(self.projection(self.null_text[...]))
