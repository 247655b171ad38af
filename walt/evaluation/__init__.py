"""Figures about videos, with honest names, and the page that shows them.

Everything here works on numpy arrays at the file border (uint8 [N, T, H, W, 3] and a label per clip) and knows nothing of models. A
published metric's name is kept for the real thing; what stands here are plain measurements whose definitions travel with the result.
"""

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

__all__ = [
    "Bar",
    "Clips",
    "EvaluationError",
    "EvaluationResult",
    "Report",
    "atari_mini_bars",
    "compare_reconstructions",
    "describe_environment",
    "diversity_ratio",
    "evaluate_clips",
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
