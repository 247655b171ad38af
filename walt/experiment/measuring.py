"""Models that are measured by what they make: samples of checkpoints beside real clips."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from walt.config import ConfigError
from walt.data import caption_files
from walt.data.records import DatasetError, read_manifest
from walt.diffusion.configs import SamplerConfig
from walt.evaluation.clips import Clips, EvaluationError
from walt.evaluation.config import Sampling
from walt.evaluation.features import Share
from walt.evaluation.footage import Footage
from walt.evaluation.measure import RealStatistics
from walt.evaluation.protocols import Protocol
from walt.evaluation.samples import BATCH, Prompts, SampleFn, footage_of_samples, prompts_of
from walt.experiment.sampling import sample_labels
from walt.generation.bundle import Bundle, bundle_checksum
from walt.generation.pipeline import Pipeline, load
from walt.generation.sources import open_bundle, shipped_bundles
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.training.checkpoint import stored_config
from walt.training.folder import latest_step


def sample_fn(pipeline: Pipeline, prompts: Prompts, sampling: Sampling, batch: int = BATCH) -> SampleFn:
    """Draws the videos of some prompts by their numbers."""

    def sample(rows: Sequence[int]) -> np.ndarray:
        return pipeline.generate([prompts.texts[row] for row in rows], numbers=rows, batch_size=batch, **vars(sampling))

    return sample


def samples_of(
    checkpoint: str,
    real: Footage | RealStatistics,
    count: int,
    sampling: Sampling,
    prompts_file: str | None,
    share: Share,
) -> tuple[Footage, dict[str, Any]]:
    """So many videos of a model, made when they are wanted, and what a card says of them. Each process of a job makes its share alone.

    Raises `EvaluationError` for a model that makes no videos of prompts alone, `GenerationError` for a sampler that cannot be.
    """
    bundle = open_bundle(checkpoint)
    pipeline = Pipeline(bundle, make_mesh(MeshConfig(), jax.local_devices()))
    check_samples(pipeline, checkpoint)
    prompts = prompts_for(pipeline, real, count, prompts_file)
    sampled = card_of_samples(bundle, pipeline, sampling, prompts)
    footage = footage_of_samples(sample_fn(pipeline, prompts, sampling), prompts, sampled, share)
    return footage, {"model": checkpoint, **sampled}


def card_of_samples(bundle: Bundle, pipeline: Pipeline, sampling: Sampling, prompts: Prompts) -> dict[str, Any]:
    """All that samples depend on, as plain JSON values."""
    sampler = pipeline.sampler_with(sampling.steps, sampling.guidance, sampling.solver, sampling.reuse)
    known = {key: bundle.card[key] for key in ("step", "weights") if key in bundle.card}
    told = told_of_sampler(sampler, sampling.seed)
    return {"sha256": bundle_checksum(bundle), **known, **told, "prompts": prompts.card()}


def told_of_sampler(sampler: SamplerConfig, seed: int) -> dict[str, Any]:
    """For the card of figures of samples."""
    return {"sampler": json.loads(json.dumps(dataclasses.asdict(sampler))), "seed": seed}


def how_many(protocol: Protocol, asked: int | None, real: Footage | RealStatistics) -> int:
    """Samples: as many as asked for, or as there are real clips, and for a protocol that says so no more than it measures."""
    if (each := protocol.num_generated) is None:
        return asked or (len(real) if isinstance(real, Footage) else len(real.values))
    if asked is None:
        return each * protocol.repeats
    count = min(asked, each * max(min(protocol.repeats, asked // each), 1))
    if count < asked:
        logging.warning("of %d samples %s measures %d: no others are drawn", asked, protocol.name, count)
    return count


def sample_every_label(checkpoint: str, heldout: Clips, count: int | None, sampling: Sampling) -> Clips:
    """Samples of one prompt for each label of the held-out clips, `count` in all or 8 of each."""
    pipeline = load(checkpoint)
    check_samples(pipeline, checkpoint)
    each = 8 if count is None else count // len(heldout.label_names)
    if each < 1:
        raise EvaluationError(f"{count} samples are fewer than the {len(heldout.label_names)} labels of the real clips")
    return sample_labels(pipeline, heldout, each, **vars(sampling))


def check_samples(pipeline: Pipeline, name: str) -> None:
    """Raises `EvaluationError` for a model that cannot make a video out of a prompt alone."""
    if pipeline.video_size is None:
        raise EvaluationError(f"{name} holds an autoencoder alone and makes no videos: measure it with --autoencoder")
    if pipeline.low_size is not None:
        raise EvaluationError(
            f"{name} makes videos of others larger: measure what `walt sample --cascade` writes, with --generated"
        )
    if not pipeline.reads_prompts:
        raise EvaluationError(f"{name} reads no prompts, but goes on from frames: measure its videos with --generated")


def prompts_for(pipeline: Pipeline, real: Footage | RealStatistics, count: int, file: str | None) -> Prompts:
    """Those in a file, one per line and in turn, or else what the real videos are called. Raises `EvaluationError` for none."""
    if file is not None:
        lines = caption_files.read_lines(Path(file))
        if not lines:
            raise EvaluationError(f"{file} holds no prompts: one per line is expected")
        texts = tuple(lines[row % len(lines)] for row in range(count))
        return Prompts(texts, texts if pipeline.class_names else ("",) * count, Path(file).name)
    return prompts_of(real, count, classes=pipeline.class_names)


def heldout_clips(checkpoint: str) -> Path:
    """The prepared clips, with held-out ones, that a run's data came from. Raises `ConfigError` where nobody can tell."""
    if checkpoint in shipped_bundles() or latest_step(checkpoint) is None:
        raise ConfigError(f"{checkpoint} is no work directory, whose held-out clips could be taken: {ADVICE}")
    return clips_of(stored_config(checkpoint).data.path)


ADVICE = "name real clips to measure by (--real, or `real` of an evaluator)"


def clips_of(data: str) -> Path:
    """Prepared clips as they are, or those that latents were made from. Raises `ConfigError` where these are gone or others."""
    try:
        manifest = read_manifest(data)
        if "clip" in manifest.shapes:
            return Path(data)
        clips = manifest.extra.get("clips")
        if not isinstance(clips, dict):
            raise ConfigError(f"the latents in {data} do not say from which clips they were made: {ADVICE}")
        checksum = read_manifest(str(clips.get("path"))).checksum()
    except DatasetError as error:
        raise ConfigError(f"the clips of {data} are not there any more: {ADVICE} ({error})") from error
    if checksum != clips.get("sha256"):
        raise ConfigError(f"{clips['path']} holds other clips now than those that {data} was made from: {ADVICE}")
    return Path(clips["path"])
