"""The published T5 v1.1 encoders (Raffel et al., arXiv 1910.10683) as values of `TextEncoderConfig`, and their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from walt.config import ConfigError
from walt.text.config import TextEncoderConfig
from walt.text.encoder import TextEncoder
from walt.text.hugging_face import ModelFolderError, Source, read_arrays, read_config
from walt.training.module import Functional
from walt.training.task import Tree
from walt.untrusted import field

VOCABULARY = 32128
SIZES = {  # width, depth, heads, head_width, mlp_width
    "small": (512, 8, 6, 64, 1024),
    "base": (768, 12, 12, 64, 2048),
    "large": (1024, 24, 16, 64, 2816),
    "xl": (2048, 24, 32, 64, 5120),
    "xxl": (4096, 24, 64, 64, 10240),
}


def t5(size: str, dtype: str = "bfloat16") -> TextEncoderConfig:
    """The encoder of T5 v1.1 small, base, large, xl or xxl."""
    if size not in SIZES:
        raise ConfigError(f"there is no T5 {size!r}; the sizes are {', '.join(SIZES)}")
    width, depth, heads, head_width, mlp_width = SIZES[size]
    return TextEncoderConfig(VOCABULARY, width, depth, heads, head_width, mlp_width, dtype=dtype)  # type: ignore[arg-type]


def read_t5(folder: Path, dtype: str = "bfloat16") -> tuple[TextEncoderConfig, Tree]:
    """Config and parameters of the encoder in a folder of Hugging Face's T5; the decoder, if there is one, is left out.

    Raises:
      ModelFolderError: the folder holds something else, such as a T5 of version 1.0.
    """
    config = _config(folder, dtype)
    names = {"embedding": Source("shared.weight"), "norm/scale": Source("encoder.final_layer_norm.weight")}
    names["relative_bias"] = Source("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    for layer in range(config.depth):
        attention, mlp = (f"encoder.block.{layer}.layer.{part}" for part in (0, 1))
        ours = f"layers/{layer}"
        names[f"{ours}/attention_norm/scale"] = Source(f"{attention}.layer_norm.weight")
        names[f"{ours}/mlp_norm/scale"] = Source(f"{mlp}.layer_norm.weight")
        for name, theirs in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
            names[f"{ours}/{name}/kernel"] = Source(f"{attention}.SelfAttention.{theirs}.weight", transposed=True)
        for name, theirs in {"gate": "wi_0", "up": "wi_1", "down": "wo"}.items():
            names[f"{ours}/{name}/kernel"] = Source(f"{mlp}.DenseReluDense.{theirs}.weight", transposed=True)
    return config, read_arrays(folder, names, Functional(lambda rngs: TextEncoder(config, rngs)).abstract_params)


def _config(folder: Path, dtype: str) -> TextEncoderConfig:
    stored = read_config(folder, "t5")
    if "gated" not in str(stored.get("feed_forward_proj", "relu")):
        raise ModelFolderError(
            f"{folder} holds a T5 of version 1.0 ({stored.get('feed_forward_proj')}); use version 1.1"
        )
    stored = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128} | stored
    try:
        return TextEncoderConfig(
            vocab_size=_size(stored, "vocab_size"),
            width=_size(stored, "d_model"),
            depth=_size(stored, "num_layers", most=512),
            heads=_size(stored, "num_heads"),
            head_width=_size(stored, "d_kv"),
            mlp_width=_size(stored, "d_ff"),
            relative_buckets=_size(stored, "relative_attention_num_buckets"),
            relative_distance=_size(stored, "relative_attention_max_distance"),
            dtype=dtype,  # type: ignore[arg-type]
        )
    except (ValueError, ConfigError) as error:
        raise ModelFolderError(f"{folder / 'config.json'} describes no T5 that can be used: {error}") from error


def _size(stored: dict[str, Any], name: str, most: int = 2**20) -> int:
    """A size of the model; `ValueError` where a model that large would only be made to fill the memory."""
    size = field(stored, name, int)
    if not 1 <= size <= most:
        raise ValueError(f"{name} must lie between 1 and {most}, got {size}")
    return size
