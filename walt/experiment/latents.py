"""Encode a data set of clips into latents, once, so that stage 2 never runs the encoder.

A latents record holds the latents of the clip and of some of its frames as stills: an image is a clip of one frame. For a
super-resolution model it holds those of the clip at lower resolution as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

from walt.autoencoder.config import AutoencoderConfig
from walt.config import ConfigError, from_config_dict
from walt.data import media, records
from walt.data.bar import progress_bar
from walt.data.faults import FaultLog, usable
from walt.data.latents import described, record_field
from walt.generation.bundle import RAW_LATENTS, encoder_checksum
from walt.generation.pipeline import Pipeline
from walt.generation.sources import open_autoencoder

STILLS = 3  # frames per clip that also become images, evenly spread


def prepare(
    autoencoder: epath.PathLike,
    input: epath.PathLike,
    output: epath.PathLike,
    limit: int = 0,
    low_resolution: int = 1,
    max_bad_records: int = 0,
) -> records.Manifest:
    """Encodes every split of the clips in `input` with the autoencoder of a bundle or workdir into the new folder `output`.

    With a `limit`, at most that many clips of each split, evenly spaced. With a factor of `low_resolution` above 1, the clips of
    means over blocks of that many pixels a side as well. Up to `max_bad_records` clips of a split that cannot be read are left out.

    A finished `output` from the same clips and weights is left as it is. Raises `DatasetError` if it is anything else, or
    if `input` holds no clips; `BundleError` if there is no autoencoder, `ConfigError` if it is not calibrated.
    """
    bundle = open_autoencoder(autoencoder)
    source = records.read_manifest(input)
    if "clip" not in source.shapes:
        raise records.DatasetError(f"{input} holds latents already, not clips")
    if limit < 0:
        raise ConfigError(f"limit must be a number of clips, or 0 for all, got {limit}")
    component = bundle.components["autoencoder"]
    # Of a stage-2 workdir it is the transformer that is finished or not: the autoencoder stays as it was found.
    changing = "transformer" not in bundle.components and not bundle.card.get("finished", True)
    uncalibrated = not np.any(component.extra["latent_mean"]) and not bundle.card.get(RAW_LATENTS)
    if changing or uncalibrated:
        raise ConfigError(
            f"the autoencoder in {autoencoder} has no latent statistics of its present weights yet: let its training finish"
        )
    length, height, width, _ = source.shapes["clip"]
    config = from_config_dict(AutoencoderConfig, component.config)
    if low_resolution != 1:
        _check_low_resolution(low_resolution, height, width, config.space_factor)
    shards = [shard.sha256 for split in source.splits.values() for shard in split.shards]
    request = {"autoencoder": encoder_checksum(component), "input": shards, "stills": STILLS, "limit": limit}
    if low_resolution > 1:
        request["low_resolution"] = low_resolution
    finished = records.already_prepared(output, "latents", request)
    if finished is not None:
        return finished
    pipeline = Pipeline(bundle)
    shapes = _shapes(config.latent_shape(length, height, width))
    if low_resolution > 1:
        small = _shapes(config.latent_shape(length, height // low_resolution, width // low_resolution))
        shapes |= {f"low_{name}": shape for name, shape in small.items()}
    frames = np.linspace(0, length - 1, STILLS).round().astype(int)
    labels: set[str] = set()
    with records.new_dataset(output) as directory:
        splits = {}
        for split, info in source.splits.items():
            with records.RecordWriter(directory, split, num_shards=len(info.shards)) as writer:
                clips = _clips(records.RecordSource(input, split), limit, max_bad_records)
                for record in _encoded(pipeline, clips, frames, low_resolution):
                    writer.write(record)
                    labels.add(record["label"])
                splits[split] = writer.close()
        records.write_manifest(
            directory,
            records.Manifest(
                name="latents",
                splits=splits,
                shapes=shapes,
                fps=source.fps,
                seed=source.seed,
                request=request,
                versions=records.package_versions("walt", "jax", "numpy"),
                extra={
                    **source.extra,
                    "autoencoder": request["autoencoder"],
                    "labels": sorted(labels),
                    "clips": {"path": os.fspath(epath.Path(input).resolve()), "sha256": source.checksum()},
                },
            ),
        )
    return records.read_manifest(os.fspath(output))


def _check_low_resolution(factor: int, height: int, width: int, multiple: int) -> None:
    fitting = [n for n in range(1, height) if not any(side % (n * multiple) for side in (height, width))]
    if factor not in fitting:
        raise ConfigError(
            f"low_resolution is {factor}, but clips of {height}x{width} can be made {', '.join(map(str, fitting))} times smaller for an "
            f"autoencoder that takes multiples of {multiple} pixels"
        )


def _shapes(latent: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"video": latent, "images": (STILLS, *latent[1:])}


def _clips(
    source: records.RecordSource, limit: int, max_bad_records: int
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """(id, captions and label; clip) of the chosen records that can be read."""
    shape = source.manifest.shapes["clip"]
    chosen = np.linspace(0, len(source) - 1, min(limit or len(source), len(source))).round().astype(int)
    log = FaultLog(f"{source.directory} ({source.split})", max_bad_records, setting="--max_bad_records")

    def read(index: int) -> tuple[dict[str, Any], np.ndarray]:
        record = source[index]
        captions, label = described(record)
        kept = {"id": str(record.get("id")), "captions": captions, "label": label}
        return kept, media.decode_clip(record_field(record, "clip", bytes), shape)

    bar = progress_bar(chosen.tolist(), desc=f"encoding {source.split}", unit="clip")
    return usable(bar, read, log)


def _encoded(
    pipeline: Pipeline, clips: Iterator[tuple[dict[str, Any], np.ndarray]], stills: np.ndarray, low_resolution: int
) -> Iterator[dict[str, Any]]:
    """The latents record of every clip."""
    rows = pipeline.rows_at_a_time
    while batch := list(islice(clips, rows)):
        # The last batch is filled up with its last clip, so that there is one shape to compile.
        videos = np.stack([video for _, video in [*batch, *batch[-1:] * (rows - len(batch))]])
        arrays = _latents(pipeline, videos, stills)
        if low_resolution > 1:
            small = _latents(pipeline, smaller(videos, low_resolution), stills)
            arrays |= {f"low_{name}": array for name, array in small.items()}
        for i, (kept, _) in enumerate(batch):
            yield kept | {name: np.asarray(array[i], np.float32).tobytes() for name, array in arrays.items()}


def _latents(
    pipeline: Pipeline, clips: UInt8[np.ndarray, "n t h w 3"], stills: np.ndarray
) -> dict[str, Float[np.ndarray, "n f i j c"]]:
    """Latents of clips as videos, and of the frames `stills` of each as images."""
    video = pipeline.encode(clips)
    # The first still is the first frame of the clip, and so is its latent that of the clip: nothing to compute.
    images = pipeline.encode(clips[:, stills[1:], None])[:, :, 0]
    return {"video": video, "images": np.concatenate([video[:, :1], images], axis=1)}


def smaller(clips: UInt8[np.ndarray, "n t h w 3"], factor: int) -> UInt8[np.ndarray, "n t i j 3"]:
    """Means over blocks of `factor` x `factor` pixels."""
    n, t, height, width, _ = clips.shape
    blocks = clips.reshape(n, t, height // factor, factor, width // factor, factor, 3)
    return np.rint(blocks.mean(axis=(3, 5), dtype=np.float32)).astype(np.uint8)
