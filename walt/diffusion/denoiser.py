"""The denoiser: text encoder and transformer as one module, so that one parameter tree is trained, averaged and
stored."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.config import ConfigError
from walt.diffusion.conditions import Conditions
from walt.text.config import TextEncoderConfig
from walt.text.encoder import TextEncoder
from walt.transformer.config import TransformerConfig
from walt.transformer.model import Transformer


class Denoiser(nnx.Module):
    """Predicts (v, noise, x0, …, as trained) from noisy latents, their times and whatever else the model is told."""

    def __init__(self, transformer: TransformerConfig, text: TextEncoderConfig | None, rngs: nnx.Rngs):
        """`text` None makes a denoiser without captions.

        Raises:
          ConfigError: the two configs do not fit each other.
        """
        check_fit(transformer, text)
        self.config = transformer
        self.transformer = Transformer(transformer, rngs)
        self.text_encoder = None if text is None else TextEncoder(text, rngs)
        self.upsampler = None if transformer.low_resolution is None else Upsampler(transformer, rngs)

    def embed_text(self, tokens: Int[Array, "b c l"], mask: Bool[Array, "b c l"]) -> Float[Array, "b c l d"]:
        """Encoded captions of every row."""
        b, c, length = tokens.shape
        assert self.text_encoder is not None  # only asked for when the config has text
        return self.text_encoder(tokens.reshape(b * c, length), mask.reshape(b * c, length)).reshape(b, c, length, -1)

    def __call__(
        self,
        x_t: Float[Array, "b f h w c"],
        time: Float[Array, "b f"],
        previous_x0: Float[Array, "b f h w c"],
        *,
        is_image: Bool[Array, " b"],
        conditions: Conditions,
    ) -> Float[Array, "b f h w c"]:
        """The prediction for `x_t` and `time` as `process.network_inputs` gives them; `previous_x0` is zeros when there is
        no estimate, and ignored by a denoiser without self-conditioning."""
        told: dict[str, Any] = {"class_label": conditions.class_label, "scalars": conditions.scalars or {}}
        if conditions.text is not None:
            told |= {
                "text_embeddings": conditions.text.embeddings,
                "text_mask": conditions.text.mask,
                "caption_index": conditions.text.caption_index,
                "drop_text": conditions.text.drop,
            }
        inputs = self._channels(x_t, previous_x0, conditions)
        return self.transformer(inputs, time, is_image=is_image, **told).astype(x_t.dtype)

    def _channels(self, x_t: Array, previous_x0: Array, conditions: Conditions) -> Float[Array, "b f h w k"]:
        """What lies on the channel axis, in the order of `TransformerConfig.channel_parts`."""
        channels = [x_t]
        if self.config.self_conditioning:
            channels.append(previous_x0)
        if self.config.canvas:
            nothing = jnp.zeros_like(x_t)
            channels.append(nothing if conditions.known is None else conditions.known)
            channels.append(nothing[..., :1] if conditions.known_mask is None else conditions.known_mask)
        if self.upsampler is not None:
            assert conditions.low_resolution is not None  # a super-resolution model has nothing to do without
            channels.append(self.upsampler(conditions.low_resolution).astype(x_t.dtype))
        return jnp.concatenate(channels, axis=-1)


class Upsampler(nnx.Module):
    """Low-resolution latents at full size: a 3x3 convolution of every frame, then depth-to-space (W.A.L.T, section 5)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        assert config.low_resolution is not None
        self.factor, channels = config.low_resolution, config.out_channels
        shape = (3, 3, channels, channels * self.factor**2)
        self.kernel = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(shape[-1:], jnp.float32))

    def __call__(self, latents: Float[Array, "b f i j c"]) -> Float[Array, "b f h w c"]:
        b, f, i, j, channels = latents.shape
        frames = latents.reshape(b * f, i, j, channels)
        wide = jax.lax.conv_general_dilated(
            frames, self.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        wide = (wide + self.bias[...]).reshape(b, f, i, j, self.factor, self.factor, channels)
        return wide.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, f, i * self.factor, j * self.factor, channels)


def check_fit(transformer: TransformerConfig, text: TextEncoderConfig | None) -> None:
    """Refuses a transformer that does not fit its text encoder.

    Raises:
      ConfigError: naming the field and what is right.
    """
    expected_width = None if text is None else text.width
    if transformer.text_width != expected_width:
        raise ConfigError(
            f"transformer.text_width is {transformer.text_width}, but the text encoder's width is {expected_width}; set them equal"
        )
