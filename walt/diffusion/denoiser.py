"""The denoiser: text encoder and transformer as one module, so that one parameter tree is trained, averaged and
stored."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.config import ConfigError
from walt.text.config import TextEncoderConfig
from walt.text.encoder import TextEncoder
from walt.transformer.config import TransformerConfig
from walt.transformer.model import Transformer


class TextCondition(NamedTuple):
    """The captions of a batch and which frame reads which.

    Attributes:
      embeddings: captions after the text encoder.
      mask: true on real tokens.
      caption_index: for each frame, the caption it attends to.
      drop: captions replaced by the learned null text.
    """

    embeddings: Float[Array, "b c l d"]
    mask: Bool[Array, "b c l"]
    caption_index: Int[Array, "b f"]
    drop: Bool[Array, "b c"]


class Denoiser(nnx.Module):
    """Predicts (v, noise, x0, …, as trained) from noisy latents, their times and captions."""

    def __init__(self, transformer: TransformerConfig, text: TextEncoderConfig | None, rngs: nnx.Rngs):
        """`text` None makes an unconditional denoiser.

        Raises:
          ConfigError: the two configs do not fit each other.
        """
        check_fit(transformer, text)
        self.self_conditioning = transformer.self_conditioning
        self.transformer = Transformer(transformer, rngs)
        self.text_encoder = None if text is None else TextEncoder(text, rngs)

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
        text: TextCondition | None,
    ) -> Float[Array, "b f h w c"]:
        """The prediction for `x_t` and `time` as `process.network_inputs` gives them; `previous_x0` is zeros when there is no estimate, and ignored by a
        denoiser without self-conditioning."""
        inputs = jnp.concatenate([x_t, previous_x0], axis=-1) if self.self_conditioning else x_t
        captions = {}
        if text is not None:
            captions = {
                "text_embeddings": text.embeddings,
                "text_mask": text.mask,
                "caption_index": text.caption_index,
                "drop_text": text.drop,
            }
        return self.transformer(inputs, time, is_image=is_image, **captions).astype(x_t.dtype)


def check_fit(transformer: TransformerConfig, text: TextEncoderConfig | None) -> None:
    """Refuses a transformer that does not fit its text encoder or its own channels.

    Raises:
      ConfigError: naming the field and what is right.
    """
    expected_width = None if text is None else text.width
    if transformer.text_width != expected_width:
        raise ConfigError(
            f"transformer.text_width is {transformer.text_width}, but the text encoder's width is {expected_width}; set them equal"
        )
    expected = transformer.out_channels * (2 if transformer.self_conditioning else 1)
    if transformer.in_channels != expected:
        raise ConfigError(
            f"transformer.in_channels is {transformer.in_channels}, expected {expected}: {transformer.out_channels} noisy channels"
            + (f" and {transformer.out_channels} of self-conditioning" if transformer.self_conditioning else "")
        )
    if transformer.num_classes is not None:
        raise ConfigError("transformer.num_classes: class labels have no training data path yet; set it to None")
