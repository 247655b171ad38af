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
from walt.text.encoder import make_encoder
from walt.transformer.config import TransformerConfig
from walt.transformer.model import Transformer
from walt.transformer.reuse import Kept, Reuse


class Denoiser(nnx.Module):
    """Predicts (v, noise, x0, …, as trained) from noisy latents, their times and whatever else the model is told."""

    def __init__(
        self,
        transformer: TransformerConfig,
        text: TextEncoderConfig | None,
        rngs: nnx.Rngs,
        *,
        has_encoder: bool = True,
    ):
        """`text` None makes a denoiser without captions; without `has_encoder` it is given captions that are encoded already.

        Raises:
          ConfigError: the two configs do not fit each other.
        """
        check_fit(transformer, text)
        self.config = transformer
        self.transformer = Transformer(transformer, rngs)
        self.text_encoder = make_encoder(text, rngs) if text is not None and has_encoder else None

    def embed_text(self, tokens: Int[Array, "b c l"], mask: Bool[Array, "b c l"]) -> Float[Array, "b c l d"]:
        """Encoded captions of every row."""
        assert self.text_encoder is not None  # only asked for when the config has text
        return encode_captions(self.text_encoder, tokens, mask)

    def emphasise(self, embeddings: Float[Array, "b l d"], weights: Float[Array, "b l"]) -> Float[Array, "b l d"]:
        """Embeddings moved along what sets each token apart from the learned null text: null + weight (embedding − null).

        1 leaves a token as it is, 0 makes it say nothing. (The interpolation with the empty prompt that Stable Diffusion's front ends
        use, with the vector that this model has learned to read as no text.)
        """
        assert self.transformer.text is not None  # there are embeddings
        null = self.transformer.text.null_text[...].astype(embeddings.dtype)
        return embeddings + (weights[..., None].astype(embeddings.dtype) - 1) * (embeddings - null)

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
        return self.predict(x_t, time, previous_x0, is_image=is_image, conditions=conditions)[0]

    def predict(
        self,
        x_t: Float[Array, "b f h w c"],
        time: Float[Array, "b f"],
        previous_x0: Float[Array, "b f h w c"],
        *,
        is_image: Bool[Array, " b"],
        conditions: Conditions,
        reuse: Reuse | None = None,
    ) -> tuple[Float[Array, "b f h w c"], Kept | None]:
        """The same, and, with `reuse`, what the next pass may take from this one."""
        told: dict[str, Any] = {
            "class_label": conditions.class_label,
            "low_resolution": conditions.low_resolution,
            "scalars": conditions.scalars or {},
        }
        if conditions.text is not None:
            told |= {
                "text_embeddings": conditions.text.embeddings,
                "text_mask": conditions.text.mask,
                "caption_index": conditions.text.caption_index,
                "drop_text": conditions.text.drop,
            }
        inputs = self._channels(x_t, previous_x0, conditions)
        value, kept = self.transformer.predict(inputs, time, is_image=is_image, reuse=reuse, **told)
        return value.astype(x_t.dtype), kept

    def _channels(self, x_t: Array, previous_x0: Array, conditions: Conditions) -> Float[Array, "b f h w k"]:
        """What lies on the channel axis, in the order of `TransformerConfig.channel_parts`, up to low resolution."""
        channels = [x_t]
        if self.config.self_conditioning:
            channels.append(previous_x0)
        if self.config.canvas:
            nothing = jnp.zeros_like(x_t)
            channels.append(nothing if conditions.known is None else conditions.known)
            channels.append(nothing[..., :1] if conditions.known_mask is None else conditions.known_mask)
        return jnp.concatenate(channels, axis=-1)


def encode_captions(encoder: Any, tokens: Int[Array, "b c l"], mask: Bool[Array, "b c l"]) -> Float[Array, "b c l d"]:
    """The captions of every row through a text encoder."""
    b, c, length = tokens.shape
    with jax.named_scope("text_encoder"):
        return encoder(tokens.reshape(b * c, length), mask.reshape(b * c, length)).reshape(b, c, length, -1)


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
