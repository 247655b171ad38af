"""The second stage's network: a transformer over latent frames with windows of space and of space-time."""

from walt.transformer.config import TransformerConfig
from walt.transformer.flops import transformer_flops
from walt.transformer.model import Transformer

__all__ = ["Transformer", "TransformerConfig", "transformer_flops"]
