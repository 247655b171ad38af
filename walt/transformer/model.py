"""The denoising transformer of W.A.L.T: latents in, prediction out, on windows of space and of space-time."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.parallel.activations import constrain
from walt.transformer.blocks import Context, Pair
from walt.transformer.conditioning import Conditioning, TextConditioning, Upsampler, modulate
from walt.transformer.config import TransformerConfig
from walt.transformer.layers import Linear, small_normal, zeros
from walt.transformer.reuse import Kept, Reuse, run_reusing
from walt.transformer.stack import init_stack, part_of_stack, run_stack


class PositionTables(nnx.Module):
    """Positions: one table over the token grid of a frame, one over frames, summed; learned, or fixed sines and cosines."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.grid, self.width = config.grid, config.width
        frames, height, width = config.grid
        learned = config.position == "learned"
        self.spatial = (
            nnx.Param(small_normal(rngs.params(), (height, width, config.width), jnp.float32)) if learned else None
        )
        self.temporal = nnx.Param(small_normal(rngs.params(), (frames, config.width), jnp.float32)) if learned else None

    def __call__(self, frames: int, is_image: Bool[Array, " B"]) -> Float[Array, "B F h w d"]:
        """Every slot of an image row has the temporal entry of frame 0."""
        spatial, temporal = self._tables()
        temporal = temporal[:frames]
        temporal = jnp.where(is_image[:, None, None], temporal[0], temporal)
        return spatial + temporal[:, :, None, None, :]

    def _tables(self) -> tuple[Float[Array, "h w d"], Float[Array, "F d"]]:
        if self.spatial is not None and self.temporal is not None:
            return self.spatial[...], self.temporal[...]
        features = (self.width, self.width // 2, self.width // 2)
        frames, height, width = (sines(size, width) for size, width in zip(self.grid, features, strict=True))
        columns, rows = jnp.broadcast_arrays(width[None], height[:, None])  # half of the features for each, as in DiT
        return jnp.concatenate([columns, rows], axis=-1), frames


def sines(positions: int, features: int) -> Float[Array, "positions features"]:
    """Sines and cosines of whole positions at wavelengths 2π to 20000π."""
    angles = jnp.arange(positions)[:, None] * 10000.0 ** (-jnp.arange(features // 2) / (features // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class FinalLayer(nnx.Module):
    """AdaLN (or a plain layer norm, where conditions are tokens) and a zero-initialised map to patches, as in DiT."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        plain = config.adaln == "none"
        self.affine = nnx.Param(jnp.zeros((2, config.width), jnp.float32)) if plain else None
        self.modulation = (
            None if plain else Linear(config.width, 2 * config.width, rngs, dtype=config.wide_dtype, initializer=zeros)
        )
        self.projection = Linear(
            config.width, config.patch**2 * config.out_channels, rngs, dtype=config.dtype, initializer=zeros
        )

    def __call__(self, x: Float[Array, "B F h w d"], condition: Float[Array, "B F d"]) -> Float[Array, "B F h w p"]:
        if self.affine is not None:
            shift, scale = self.affine[...]
        else:
            assert self.modulation is not None
            shift, scale = jnp.split(self.modulation(jax.nn.silu(condition))[:, :, None, None, :], 2, axis=-1)
        return self.projection(modulate(x, shift, scale))


class Transformer(nnx.Module):
    """W.A.L.T's second stage (arXiv 2312.06662). Deterministic; keeps no random state."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        self.patch_embedding = Linear(config.patch**2 * config.in_channels, config.width, rngs, dtype=config.dtype)
        self.upsampler = None if config.low_resolution is None else Upsampler(config, rngs)
        self.position = PositionTables(config, rngs)
        self.conditioning = Conditioning(config, rngs)
        self.text = None if config.text_width is None else TextConditioning(config, rngs)
        half = config.units // 2 if config.long_skips else 0
        self.blocks = init_stack(lambda keys: Pair(config, keys), config.units - half, rngs)
        self.joining_blocks = init_stack(lambda keys: Pair(config, keys, joins=True), half, rngs) if half else None
        self.final = FinalLayer(config, rngs)

    def __call__(
        self, latents: Float[Array, "B F h w C"], timestep: Float[Array, "B F"], **told: Any
    ) -> Float[Array, "B F h w Cout"]:
        """`predict` by a full pass."""
        return self.predict(latents, timestep, **told)[0]

    def predict(
        self,
        latents: Float[Array, "B F h w C"],
        timestep: Float[Array, "B F"],
        *,
        is_image: Bool[Array, " B"],
        text_embeddings: Float[Array, "B C L D"] | None = None,
        text_mask: Bool[Array, "B C L"] | None = None,
        caption_index: Int[Array, "B F"] | None = None,
        drop_text: Bool[Array, "B C"] | None = None,
        class_label: Int[Array, "B F"] | None = None,
        drop_class: Bool[Array, "B F"] | None = None,
        low_resolution: Float[Array, "B F i j Cout"] | None = None,
        scalars: Mapping[str, Float[Array, "B F"]] = MappingProxyType({}),
        reuse: Reuse | None = None,
    ) -> tuple[Float[Array, "B F h w Cout"], Kept | None]:
        """Predicts `out_channels` per latent position, in at least float32; and, with `reuse`, what the next pass may take from this one.

        Args:
            latents: noisy latents and all else on the channel axis but low resolution, see `TransformerConfig.channel_parts`.
            timestep: 1000·t per frame, t in [0, 1].
            is_image: True for rows that stack F independent images; nothing passes between their slots.
            text_embeddings, text_mask: up to C captions per row (mask True on real tokens; default all real).
            caption_index: the caption of each frame; default the first.
            drop_text: captions to replace by the learned null text.
            class_label, drop_class: class of each frame and where to replace it by "no class"; default no class.
            low_resolution: latents of a super-resolution model's lower resolution.
            scalars: numbers of the config's `scalars`; NaN, or left out, where they are not told.
            reuse: of the pass before; None to compute all.

        Raises:
            ValueError: an input that does not fit the configuration.
        """
        if self.upsampler is not None:
            frames, (height, width) = latents.shape[:2], self.config.latent_shape[1:]
            small = (*frames, height // self.upsampler.factor, width // self.upsampler.factor, self.config.out_channels)
            if low_resolution is None or low_resolution.shape != small:
                found = "none" if low_resolution is None else low_resolution.shape
                raise ValueError(
                    f"this transformer is one of super-resolution and needs low_resolution of {small}, got {found}"
                )
            latents = jnp.concatenate([latents, self.upsampler(low_resolution).astype(latents.dtype)], axis=-1)
        self._check(latents, timestep, is_image, text_embeddings, class_label)
        if unknown := set(scalars) - set(self.config.scalars):
            raise ValueError(
                f"this transformer is not told {', '.join(sorted(unknown))}; its scalars are {self.config.scalars}"
            )
        with jax.named_scope("conditioning"):
            conditions = self.conditioning(timestep, class_label, drop_class, scalars)
        condition = sum(conditions[1:], conditions[0])
        text = None
        if self.text is not None and text_embeddings is not None:
            if text_mask is None:
                text_mask = jnp.ones(text_embeddings.shape[:3], bool)
            if caption_index is None:
                caption_index = jnp.zeros(timestep.shape, jnp.int32)
            text, text_mask = self.text(text_embeddings, text_mask, drop_text, caption_index)
        context = Context(condition, self.conditioning.shared_modulation(condition), is_image, text, text_mask)

        with jax.named_scope("embedding"):
            x = self.patch_embedding(patchify(latents, self.config.patch))
            x = x + self.position(latents.shape[1], is_image).astype(x.dtype)
        x = constrain(x, "batch", None, "context", None, None)
        if self.config.adaln == "none":
            x, kept = self._run_with_tokens(x, conditions, context, reuse)
        else:
            x, kept = self._run(x, context, reuse)
        with jax.named_scope("embedding"):
            x = unpatchify(self.final(x, condition), self.config.patch)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)), kept

    def _run(
        self, x: Float[Array, "B F h w d"], context: Context, reuse: Reuse | None
    ) -> tuple[Float[Array, "B F h w d"], Kept | None]:
        if reuse is None:
            return self._run_blocks(x, context), None
        first = lambda x: run_stack(part_of_stack(self.blocks, 0, 1), x, context)[0]  # noqa: E731
        return run_reusing(reuse, x, first, lambda y: self._run_blocks(y, context, done=1))

    def _run_blocks(self, x: Float[Array, "B F h w d"], context: Context, done: int = 0) -> Float[Array, "B F h w d"]:
        """Through all blocks but the first `done`, 0 or 1, which `x` has been through."""
        remat, joins = self.config.remat, self.joining_blocks is not None
        blocks = part_of_stack(self.blocks, 1) if done else self.blocks
        begun = x[None][:done]
        x, outputs = run_stack(blocks, x, context, remat=remat, keep=joins)
        if self.joining_blocks is None or outputs is None:
            return x
        # The last of these blocks is the middle: its output goes on, and is no skip.
        skips = jnp.concatenate([begun, outputs])[:-1]
        return run_stack(self.joining_blocks, x, context, remat=remat, skips=skips)[0]

    def _run_with_tokens(
        self,
        x: Float[Array, "B F h w d"],
        conditions: tuple[Float[Array, "B F d"], ...],
        context: Context,
        reuse: Reuse | None,
    ) -> tuple[Float[Array, "B F h w d"], Kept | None]:
        """Lays the conditions and the patches of a frame out as one row, which is one window, and takes the patches out again."""
        batch, frames, height, width, features = x.shape
        tokens = [condition[:, :, None].astype(x.dtype) for condition in conditions]
        if context.text is not None and context.text_mask is not None and self.text is not None:
            # Attention has no mask here: what would be padding is the null text.
            text = jnp.where(context.text_mask[..., None], context.text, self.text.null())
            tokens.append(jnp.broadcast_to(text, (batch, frames, *text.shape[2:])).astype(x.dtype))
        row = jnp.concatenate([*tokens, x.reshape(batch, frames, height * width, features)], axis=2)[:, :, None]
        row, kept = self._run(row, context._replace(text=None, text_mask=None), reuse)
        return row[:, :, 0, -height * width :].reshape(x.shape), kept

    def _check(
        self, latents: Array, timestep: Array, is_image: Array, text: Array | None, class_label: Array | None
    ) -> None:
        config = self.config
        frames, height, width = config.latent_shape
        if latents.ndim != 5 or latents.shape[2:] != (height, width, config.in_channels) or latents.shape[1] > frames:
            raise ValueError(
                f"latents must be [B, F, {height}, {width}, {config.in_channels}] with F at most {frames}, got {latents.shape}"
            )
        if timestep.shape != latents.shape[:2]:
            raise ValueError(
                f"timestep must have one value per row and latent frame, {latents.shape[:2]}, got {timestep.shape}"
            )
        if is_image.shape != latents.shape[:1] or is_image.dtype != jnp.bool_:
            raise ValueError(
                f"is_image must be bool of shape {latents.shape[:1]}, got {is_image.dtype} {is_image.shape}"
            )
        if (text is None) != (config.text_width is None):
            expected = (
                "is not given text (text_width is None)"
                if config.text_width is None
                else "needs text_embeddings (drop_text for none)"
            )
            raise ValueError(f"this transformer {expected}")
        if text is not None and (
            text.ndim != 4 or text.shape[0] != latents.shape[0] or text.shape[-1] != config.text_width
        ):
            raise ValueError(
                f"text_embeddings must be [{latents.shape[0]}, C, L, {config.text_width}], got {text.shape}"
            )
        if class_label is not None and config.num_classes is None:
            raise ValueError("class_label was given to a transformer without classes (num_classes is None)")


def patchify(x: Float[Array, "B F h w c"], patch: int) -> Float[Array, "B F hp wp pc"]:
    """Cuts every frame into square patches and puts each on the channel axis."""
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, frames, height // patch, width // patch, patch**2 * channels)


def unpatchify(x: Float[Array, "B F hp wp pc"], patch: int) -> Float[Array, "B F h w c"]:
    """Inverse of `patchify`."""
    batch, frames, rows, columns, size = x.shape
    x = x.reshape(batch, frames, rows, columns, patch, patch, size // patch**2)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(batch, frames, rows * patch, columns * patch, size // patch**2)
