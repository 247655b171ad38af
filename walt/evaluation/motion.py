"""Does anything move, and as much as in real footage?

The figure is a ratio of mean absolute frame differences. It says how much changes, not whether the change is right: flicker counts as motion,
so it is read beside the videos and never alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from walt.evaluation.clips import Clips, EvaluationError, check_labels_known, check_videos

RATIO_LOW, RATIO_HIGH = 0.5, 2.0
"""A label's motion counts as right when its ratio lies in this closed interval."""


def frame_difference(videos: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, " n"]:
    """Mean absolute difference of neighbouring frames per clip, on the [0, 1] scale.

    Raises `EvaluationError` for another dtype or shape and for clips of a single frame.
    """
    check_videos(videos)
    if videos.shape[1] < 2:
        raise EvaluationError("motion needs clips of at least 2 frames, got 1")
    result = np.empty(len(videos))
    for row, video in enumerate(videos):
        # The absolute difference of two uint8 values without leaving uint8: max - min.
        later, earlier = video[1:], video[:-1]
        result[row] = (np.maximum(later, earlier) - np.minimum(later, earlier)).mean(dtype=np.float64) / 255.0
    return result


@dataclass(frozen=True)
class LabelMotion:
    """Mean absolute frame difference on the [0, 1] scale, and generated / real (`None` where the real clips stand still)."""

    generated: float
    real: float
    ratio: float | None


@dataclass(frozen=True)
class MotionResult:
    """`within` of `labels` labels have a ratio in [0.5, 2]; `motion_ratio` divides the means over labels (`None`: all real clips stand still)."""

    motion_ratio: float | None
    within: int
    labels: int
    per_label: Mapping[str, LabelMotion]


def motion_ratio(generated: Clips, real: Clips) -> MotionResult:
    """Motion of the generated clips of every label as a fraction of its real clips' motion.

    A label whose real clips stand still has no ratio and never counts as within. Raises `EvaluationError` for a generated label without real clips.
    """
    check_labels_known("generated", generated, "the real clips", real.label_names)
    of_generated, of_real = frame_difference(generated.videos), frame_difference(real.videos)
    per_label = {}
    for label in generated.label_names:
        ours, theirs = float(of_generated[generated.rows_of(label)].mean()), float(of_real[real.rows_of(label)].mean())
        per_label[label] = LabelMotion(ours, theirs, ours / theirs if theirs > 0 else None)
    total_generated = sum(entry.generated for entry in per_label.values())
    total_real = sum(entry.real for entry in per_label.values())
    return MotionResult(
        motion_ratio=total_generated / total_real if total_real > 0 else None,
        within=sum(entry.ratio is not None and RATIO_LOW <= entry.ratio <= RATIO_HIGH for entry in per_label.values()),
        labels=len(per_label),
        per_label=per_label,
    )
