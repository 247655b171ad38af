"""Embed the captions of a latents data set with a frozen text encoder, once, so that training need not hold and run it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from walt.config import ConfigError, from_config_dict
from walt.data import records
from walt.data.bar import progress_bar
from walt.data.latents import described
from walt.generation.bundle import text_checksum
from walt.generation.sources import open_text_encoder
from walt.text.config import TextEncoderConfig
from walt.text.encoder import make_encoder
from walt.text.tokenizer import read_tokenizer
from walt.training.module import Functional

BATCH = 32


def prepare(
    encoder: epath.PathLike, input: epath.PathLike, output: epath.PathLike, length: int = 24
) -> records.Manifest:
    """Copies the latents in `input` into the new folder `output`, with every caption's embeddings of `length` tokens in float16.

    A finished `output` from the same is left as it is. Raises `DatasetError` if it is anything else, or if `input` holds no
    latents; `BundleError` if there is no text encoder.
    """
    bundle = open_text_encoder(encoder)
    source = records.read_manifest(input)
    if "video" not in source.shapes:
        raise records.DatasetError(f"{input} holds clips, not latents; make them with `walt prepare latents`")
    if length < 1:
        raise ConfigError(f"length must be a number of tokens, at least 1, got {length}")
    shards = [shard.sha256 for split in source.splits.values() for shard in split.shards]
    request = {"text_encoder": text_checksum(bundle), "input": shards, "length": length}
    finished = records.already_prepared(output, "latents", request)
    if finished is not None:
        return finished
    embed = _Embedding(bundle, length)
    with records.new_dataset(output) as directory:
        splits = {}
        for split, info in source.splits.items():
            with records.RecordWriter(directory, split, num_shards=len(info.shards)) as writer:
                for record in _embedded(records.RecordSource(input, split), embed, split):
                    writer.write(record)
                splits[split] = writer.close()
        manifest = dataclasses.replace(
            source,
            splits=splits,
            shapes={**source.shapes, "text": (length, embed.width)},
            request=request,
            versions=records.package_versions("walt", "jax", "numpy"),
            extra={**source.extra, "text_encoder": request["text_encoder"]},
        )
        records.write_manifest(directory, manifest)
    return records.read_manifest(os.fspath(output))


class _Embedding:
    """Captions to float16 embeddings and masks, a full batch at a time."""

    def __init__(self, bundle: Any, length: int):
        part = bundle.components["text_encoder"]
        config = from_config_dict(TextEncoderConfig, part.config)
        model = Functional(lambda rngs: make_encoder(config, rngs))
        self.width, self.length = config.width, length
        self._tokenize = read_tokenizer(bundle.tokenizer)
        self._weights = jax.tree.map(jnp.asarray, part.params)
        self._run = jax.jit(lambda weights, ids, mask: model.bind(weights)(ids, mask))

    def __call__(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        count = len(captions)
        ids, mask = self._tokenize([*captions, *[captions[-1]] * (-count % BATCH)], self.length)
        parts = [self._run(self._weights, ids[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(ids), BATCH)]
        return np.concatenate(parts)[:count].astype(np.float16), mask[:count]


def _embedded(source: records.RecordSource, embed: _Embedding, split: str) -> Iterator[dict[str, Any]]:
    """The records with their captions' embeddings, of several records at a time."""
    for start in progress_bar(range(0, len(source), BATCH), desc=f"embedding {split}", unit="batch"):
        batch = [source[index] for index in range(start, min(start + BATCH, len(source)))]
        text, mask = embed([caption for record in batch for caption in described(record)[0]])
        done = 0
        for record in batch:
            own = slice(done, done + len(record["captions"]))
            done = own.stop
            yield record | {"text": text[own].tobytes(), "text_mask": mask[own].tobytes()}
