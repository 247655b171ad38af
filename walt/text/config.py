"""Shape of the text encoder; imports no jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from walt.config import ConfigError


@dataclass(frozen=True)
class TextEncoderConfig:
    """A T5 (v1.1) or BERT encoder. The defaults are a small T5 that is trained together with the transformer; the published sizes
    are `walt.text.t5.t5` and `walt.text.bert.MINILM`.

    Attributes:
      architecture: "t5" or "bert".
      vocab_size: entries of the token table; also the most pieces the tokenizer may learn.
      width, depth, heads, head_width, mlp_width: of the encoder.
      relative_buckets, relative_distance: of T5's bias on relative positions, which all layers share.
      dtype: of the computation; norms and softmax are at least float32.
    """

    vocab_size: int = 256
    width: int = 128
    depth: int = 2
    heads: int = 4
    head_width: int = 32
    mlp_width: int = 256
    relative_buckets: int = 32
    relative_distance: int = 128
    dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    architecture: Literal["t5", "bert"] = "t5"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "heads", "head_width", "mlp_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.{name} must be at least 1, got {getattr(self, name)}")
        if self.architecture not in ("t5", "bert"):
            raise ConfigError(f"text.architecture must be t5 or bert, got {self.architecture!r}")
        if self.relative_buckets < 4 or self.relative_buckets % 2:
            raise ConfigError(f"text.relative_buckets must be even and at least 4, got {self.relative_buckets}")
        if self.relative_distance <= self.relative_buckets // 4:
            raise ConfigError(
                f"text.relative_distance must exceed a quarter of relative_buckets, got {self.relative_distance}"
            )
