"""Do several samples of one prompt differ as much as real clips do?

The distance of two clips is the root mean square of their pixel differences over all frames, on the [0, 1] scale. Noise is diverse too: the
figure guards against collapse onto one picture and says nothing about quality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from walt.evaluation.clips import (
    Clips,
    EvaluationError,
    UndefinedError,
    check_labels_known,
    check_same_shape,
    check_videos,
    evenly_spaced,
)
from walt.evaluation.threads import one_blas_thread

MAX_REAL_CLIPS = 256
"""Real clips per label that are compared with each other: an evenly spaced subset of this size estimates the mean well enough."""


def pairwise_distances(videos: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, "n n"]:
    """Root-mean-square pixel distance of every two clips over all frames, on the [0, 1] scale; exactly zero for equal clips.

    Raises `EvaluationError` for another dtype or shape.
    """
    check_videos(videos)
    count, frames = len(videos), videos.shape[1]
    gram = np.zeros((count, count))
    for frame in range(frames):
        # Frame by frame keeps the float64 copy small; products of integers below 2^53 are exact, so equal clips come out at zero.
        flat = videos[:, frame].reshape(count, -1).astype(np.float64)
        gram += flat @ flat.T
    squares = np.diag(gram)
    squared = squares[:, None] + squares[None, :] - 2.0 * gram
    return np.sqrt(np.maximum(squared, 0.0) / videos[0].size) / 255.0


def mean_pairwise_distance(videos: UInt8[np.ndarray, "n t h w 3"]) -> float:
    """Mean distance over all pairs of different clips. Raises `EvaluationError` for fewer than two clips."""
    if len(videos) < 2:
        raise EvaluationError(f"a mean pairwise distance needs at least 2 clips, got {len(videos)}")
    count = len(videos)
    return float(pairwise_distances(videos).sum() / (count * (count - 1)))


@dataclass(frozen=True)
class LabelDiversity:
    """Mean pairwise distances on the [0, 1] scale, and generated / real (`None` where all real clips are equal)."""

    generated: float
    real: float
    ratio: float | None


@dataclass(frozen=True)
class DiversityResult:
    """`diversity_ratio` is the generated distance averaged over labels divided by the real one averaged over the same labels."""

    diversity_ratio: float | None
    per_label: Mapping[str, LabelDiversity]


@one_blas_thread
def diversity_ratio(generated: Clips, real: Clips) -> DiversityResult:
    """Mean pairwise distance within a prompt of the generated clips, relative to real clips of the same label.

    Generated pairs share their prompt (their label where the clips carry no prompts); a label with several prompts takes their mean.
    Real pairs share their label. A label is left out where no prompt has two samples or fewer than two real clips exist.
    Raises `EvaluationError` when clip shapes differ, for a generated label without real clips, `UndefinedError` when no label is left.
    """
    check_same_shape("generated", generated, "real", real)
    check_labels_known("generated", generated, "the real clips", real.label_names)
    per_label = {}
    for label in generated.label_names:
        within = [
            mean_pairwise_distance(generated.videos[rows]) for rows in _prompt_groups(generated, label) if len(rows) > 1
        ]
        rows = real.rows_of(label)
        if not within or len(rows) < 2:
            continue
        ours = float(np.mean(within))
        theirs = mean_pairwise_distance(real.videos[rows[evenly_spaced(len(rows), MAX_REAL_CLIPS)]])
        per_label[label] = LabelDiversity(ours, theirs, ours / theirs if theirs > 0 else None)
    if not per_label:
        raise UndefinedError(
            "diversity needs a prompt with at least 2 generated clips and at least 2 real clips of its label"
        )
    total_real = sum(entry.real for entry in per_label.values())
    total_generated = sum(entry.generated for entry in per_label.values())
    return DiversityResult(total_generated / total_real if total_real > 0 else None, per_label)


def _prompt_groups(clips: Clips, label: str) -> Sequence[np.ndarray]:
    rows = clips.rows_of(label)
    if not clips.prompts:
        return [rows]
    prompts = np.asarray([clips.prompts[row] for row in rows])
    return [rows[prompts == prompt] for prompt in sorted(set(prompts))]
