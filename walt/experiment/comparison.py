"""An autoencoder measured on held-out clips beside simple codes, and how it came to be so good."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from walt.evaluation.clips import Clips
from walt.evaluation.fidelity import Coded, Comparison, compare, simple_codes
from walt.generation.pipeline import Pipeline
from walt.training.metrics import read_metrics

_BATCH = 8
_LEVELS_PER_STD = 32  # 256 levels over four standard deviations to either side


def compare_with_simple_codes(pipeline: Pipeline, heldout: Clips) -> Comparison:
    """The autoencoder, the same with its latents rounded to a byte each, and the simple codes of at most as many numbers.

    Raises `EvaluationError` for clips that a code cannot take.
    """
    latents = np.concatenate([pipeline.encode(chunk.videos) for chunk in heldout.chunks(_BATCH)])
    numbers = latents[0].size
    simple = simple_codes(heldout.videos, numbers)
    # The statistics of a model that is still in training are not those of its latents yet, so they are taken here.
    mean, std = (moment(latents, axis=(0, 1, 2, 3)) for moment in (np.mean, np.std))
    levels = np.clip(np.rint((latents - mean) / std * _LEVELS_PER_STD), -128, 127).astype(np.int8)
    rounded = levels.astype(np.float32) / _LEVELS_PER_STD * std + mean
    coded = {
        "autoencoder": Coded(f"{numbers:,} numbers", _decoded(pipeline, latents)),
        "… as bytes": Coded(f"{numbers:,} bytes", _decoded(pipeline, rounded)),
    }
    return compare(heldout, {**coded, **simple})


def _decoded(pipeline: Pipeline, latents: np.ndarray) -> np.ndarray:
    return np.concatenate([pipeline.decode(latents[i : i + _BATCH]) for i in range(0, len(latents), _BATCH)])


def progress_of(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Held-out PSNR and SSIM of a stage-1 run over its hours of training, as its log has them; evaluation and saving count."""
    records = read_metrics(workdir)
    seconds = {record["step"]: record["seconds"] for record in records if "seconds" in record}
    return [
        {"hours": seconds[record["step"]] / 3600}
        | {name: record[f"heldout/{name}"] for name in ("psnr", "ssim") if f"heldout/{name}" in record}
        for record in records
        if "heldout/psnr" in record and record["step"] in seconds
    ]
