"""Figures about videos, with honest names, and the page that shows them.

Everything here works on numpy arrays at the file border (uint8 [N, T, H, W, 3] and a label per clip) and knows nothing of models. A
published metric's name is kept for the real thing: "FVD" is the distance of I3D's Kinetics-400 logits under a named protocol; the others
are plain measurements whose definitions travel with the result. What needs jax is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from walt.evaluation.bars import Bar, atari_mini_bars
from walt.evaluation.clips import Clips, EvaluationError
from walt.evaluation.diversity import diversity_ratio, mean_pairwise_distance, pairwise_distances
from walt.evaluation.environment import describe_environment, peak_memory_gb
from walt.evaluation.frechet import frechet_distance
from walt.evaluation.kernel import kernel_distance
from walt.evaluation.motion import frame_difference, motion_ratio
from walt.evaluation.nearest import nearest_clips
from walt.evaluation.prompts import fit_classifier, prompt_accuracy, shuffled_labels
from walt.evaluation.reconstruction import compare_reconstructions, mean_frames, moving_pixel_psnr, moving_pixels, psnr
from walt.evaluation.report import Report, write_report
from walt.evaluation.result import EvaluationResult, evaluate_clips

if TYPE_CHECKING:
    from walt.evaluation.distance import VideoDistance as VideoDistance
    from walt.evaluation.distance import evaluate_videos as evaluate_videos
    from walt.evaluation.i3d import I3D as I3D

__all__ = [
    "I3D",
    "Bar",
    "Clips",
    "EvaluationError",
    "EvaluationResult",
    "Report",
    "VideoDistance",
    "atari_mini_bars",
    "compare_reconstructions",
    "describe_environment",
    "diversity_ratio",
    "evaluate_clips",
    "evaluate_videos",
    "fit_classifier",
    "frame_difference",
    "frechet_distance",
    "kernel_distance",
    "mean_frames",
    "mean_pairwise_distance",
    "motion_ratio",
    "moving_pixel_psnr",
    "moving_pixels",
    "nearest_clips",
    "pairwise_distances",
    "peak_memory_gb",
    "prompt_accuracy",
    "psnr",
    "shuffled_labels",
    "write_report",
]

_LAZY = {
    "I3D": "walt.evaluation.i3d",
    "VideoDistance": "walt.evaluation.distance",
    "evaluate_videos": "walt.evaluation.distance",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'walt.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
