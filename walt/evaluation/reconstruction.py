"""How well a first stage reconstructs, in dB, beside what two trivial predictors reach on the same pixels.

Static scenery flatters every reconstruction figure: of an Atari clip most pixels never change, and the mean frame of the game predicts them
well. The figures that mean something are therefore taken on moving pixels and stand beside two baselines: the mean frame of the game over
its training clips, and the first frame of the clip repeated (which is exact in frame 0, as stated here once and for all).

PSNR is -10 log10(MSE) on the [0, 1] scale. Of several clips it is the PSNR of their pooled MSE, which is never above the mean of their
PSNRs; over games it is the mean of the games' figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num

from walt.evaluation.clips import Clips, EvaluationError, check_labels_known, check_videos

MOVING_THRESHOLD = 0.05
"""Temporal standard deviation, on the [0, 1] scale, above which a pixel counts as moving."""

CEILING_DB = 100.0
"""Largest figure in a `ReconstructionResult`, so that a perfect copy (infinite PSNR) keeps means finite and JSON valid."""

_CHUNK = 32


def psnr(original: Num[np.ndarray, "*shape"], reconstruction: Num[np.ndarray, "*shape"]) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape, both uint8 or both floating point in [0, 1]; `inf` for equal ones.

    Raises `EvaluationError` for another dtype, two dtypes, values outside [0, 1], unequal or empty shapes.
    """
    peak = _check_pair(original, reconstruction)
    difference = original.astype(np.float64) - reconstruction.astype(np.float64)
    return _decibel(float(np.mean(np.square(difference))), peak)


def moving_pixels(
    video: Num[np.ndarray, "*n t h w 3"], threshold: float = MOVING_THRESHOLD
) -> Bool[np.ndarray, "*n h w"]:
    """Positions at which some colour channel has a temporal standard deviation (population, [0, 1] scale) above `threshold`."""
    peak = _check_image_values("video", video)
    if video.ndim < 4 or video.shape[-1] != 3:
        raise EvaluationError(f"video must have shape [..., T, H, W, 3], got {list(video.shape)}")
    frames = np.moveaxis(video, -4, 0)
    # T²·variance = T·Σx² - (Σx)²: exact in integers, so that the threshold cuts uint8 clips without rounding.
    wide = np.int64 if video.dtype == np.uint8 else np.float64
    total, squares = np.zeros(frames.shape[1:], wide), np.zeros(frames.shape[1:], wide)
    for frame in frames:
        values = frame.astype(wide)
        total += values
        squares += values * values
    scaled_variance = len(frames) * squares - total * total
    return np.any(scaled_variance > (threshold * peak * len(frames)) ** 2, axis=-1)


def moving_pixel_psnr(
    original: Num[np.ndarray, "*n t h w 3"],
    reconstruction: Num[np.ndarray, "*n t h w 3"],
    threshold: float = MOVING_THRESHOLD,
) -> float:
    """PSNR in dB over the moving pixels of `original` alone, all frames and channels of them; `nan` when nothing moves.

    Raises `EvaluationError` as `psnr` does, and for arrays that are not [..., T, H, W, 3].
    """
    peak = _check_pair(original, reconstruction)
    moving = moving_pixels(original, threshold)
    if not moving.any():
        return math.nan
    errors = _error_map(original, reconstruction)[moving]
    return _decibel(float(errors.mean()) / (original.shape[-4] * 3), peak)


def mean_frames(training: Iterable[Clips]) -> dict[str, Float[np.ndarray, "h w 3"]]:
    """The mean frame of every label over all its training clips and frames, float64 on the 0-255 scale. Walks `training` once.

    Raises `EvaluationError` when there is no clip at all or when frame sizes differ.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for chunk in training:
        for label in chunk.label_names:
            videos = chunk.videos[chunk.rows_of(label)]
            total = videos.sum(axis=(0, 1), dtype=np.uint64)
            if label in sums and sums[label].shape != total.shape:
                raise EvaluationError(
                    f"training clips of {label!r} have frames of {sums[label].shape} and of {total.shape}"
                )
            sums[label] = sums[label] + total if label in sums else total
            counts[label] = counts.get(label, 0) + videos.shape[0] * videos.shape[1]
    if not sums:
        raise EvaluationError(
            "no training clips to take mean frames of (an exhausted generator? pass a list or PreparedClips)"
        )
    return {label: sums[label] / counts[label] for label in sorted(sums)}


@dataclass(frozen=True)
class LabelReconstruction:
    """Figures of one label in dB. `None`: no pixel of its clips moves, or there were no training clips for the mean frame."""

    clips: int
    moving_fraction: float
    psnr: float
    psnr_mean_frame_all_pixels: float | None
    psnr_first_frame_repeated_all_pixels: float
    psnr_moving: float | None
    psnr_mean_frame: float | None
    psnr_first_frame_repeated: float | None


@dataclass(frozen=True)
class ReconstructionResult:
    """Means over labels in dB. Names without `_all_pixels` other than `heldout_psnr` are taken on moving pixels alone."""

    heldout_psnr: float
    psnr_mean_frame_all_pixels: float | None
    psnr_first_frame_repeated_all_pixels: float
    psnr_moving: float | None
    psnr_mean_frame: float | None
    psnr_first_frame_repeated: float | None
    per_label: Mapping[str, LabelReconstruction]

    @property
    def psnr_moving_gain(self) -> float | None:
        """`psnr_moving` minus the better of the two baselines on the same pixels, in dB."""
        baselines = [value for value in (self.psnr_mean_frame, self.psnr_first_frame_repeated) if value is not None]
        return None if self.psnr_moving is None or not baselines else self.psnr_moving - max(baselines)


def compare_reconstructions(
    heldout: Clips, reconstructions: np.ndarray, means: Mapping[str, np.ndarray] | None = None
) -> ReconstructionResult:
    """Scores `reconstructions` (uint8, the shape of `heldout.videos`) and both baselines per label.

    `means` is what `mean_frames` returned for the training clips; without it the mean-frame figures are `None`.
    Raises `EvaluationError` for unlike shapes, for another dtype, and for a held-out label of which `means` has no frame.
    """
    check_videos(reconstructions, "reconstructions")
    if reconstructions.shape != heldout.videos.shape:
        raise EvaluationError(
            f"reconstructions must have the shape of the held-out clips {list(heldout.videos.shape)}, got {list(reconstructions.shape)}"
        )
    if means is not None:
        check_labels_known("held-out", heldout, "the mean frames of the training clips", tuple(means))
    per_label = {
        label: _score_label(heldout, reconstructions, heldout.rows_of(label), None if means is None else means[label])
        for label in heldout.label_names
    }
    mean = lambda name: _mean_of(getattr(entry, name) for entry in per_label.values())  # noqa: E731
    return ReconstructionResult(
        heldout_psnr=float(np.mean([entry.psnr for entry in per_label.values()])),
        psnr_mean_frame_all_pixels=mean("psnr_mean_frame_all_pixels"),
        psnr_first_frame_repeated_all_pixels=float(
            np.mean([entry.psnr_first_frame_repeated_all_pixels for entry in per_label.values()])
        ),
        psnr_moving=mean("psnr_moving"),
        psnr_mean_frame=mean("psnr_mean_frame"),
        psnr_first_frame_repeated=mean("psnr_first_frame_repeated"),
        per_label=per_label,
    )


def _score_label(
    heldout: Clips, reconstructions: np.ndarray, rows: np.ndarray, mean_frame: np.ndarray | None
) -> LabelReconstruction:
    frames, height, width, _ = heldout.clip_shape
    if mean_frame is not None and mean_frame.shape != (height, width, 3):
        raise EvaluationError(
            f"mean frames must be {[height, width, 3]} like the held-out clips, got {list(mean_frame.shape)}"
        )
    names = ("reconstruction", "first_frame") + (() if mean_frame is None else ("mean_frame",))
    error_all, error_moving, moving_count = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), 0
    for start in range(0, len(rows), _CHUNK):
        some = rows[start : start + _CHUNK]
        original = heldout.videos[some]
        moving = moving_pixels(original)
        moving_count += int(moving.sum())
        for name in names:
            if name == "reconstruction":
                prediction: np.ndarray = reconstructions[some]
            else:
                prediction = original[:, :1] if name == "first_frame" else np.asarray(mean_frame)[None, None]
            errors = _error_map(original, prediction)
            error_all[name] += float(errors.sum())
            error_moving[name] += float(errors[moving].sum())

    def decibel(errors: Mapping[str, float], name: str, pixels: int) -> float | None:
        if name not in errors or pixels == 0:
            return None
        return min(_decibel(errors[name] / (pixels * frames * 3), 255.0), CEILING_DB)

    everything = len(rows) * height * width
    overall, first = decibel(error_all, "reconstruction", everything), decibel(error_all, "first_frame", everything)
    assert overall is not None and first is not None
    return LabelReconstruction(
        clips=len(rows),
        moving_fraction=moving_count / everything,
        psnr=overall,
        psnr_mean_frame_all_pixels=decibel(error_all, "mean_frame", everything),
        psnr_first_frame_repeated_all_pixels=first,
        psnr_moving=decibel(error_moving, "reconstruction", moving_count),
        psnr_mean_frame=decibel(error_moving, "mean_frame", moving_count),
        psnr_first_frame_repeated=decibel(error_moving, "first_frame", moving_count),
    )


def _error_map(original: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Squared error summed over time and channels, float64 [..., H, W], in squared units of the input; `prediction` may broadcast."""
    # In float32 every square and partial sum of uint8 differences is an exact integer for up to 86 frames, and within 1e-6 beyond.
    wide = np.float32 if original.dtype == np.uint8 else np.float64
    difference = original.astype(wide) - prediction.astype(wide)
    return np.einsum("...thwc,...thwc->...hw", difference, difference).astype(np.float64)


def _decibel(mean_squared_error: float, peak: float) -> float:
    return math.inf if mean_squared_error == 0 else 10.0 * math.log10(peak * peak / mean_squared_error)


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _check_image_values(name: str, array: np.ndarray) -> float:
    """The peak value of the scale (255 or 1) after the checks that every public function here makes."""
    if not isinstance(array, np.ndarray):
        raise EvaluationError(f"{name} must be a numpy array, got {type(array).__name__}")
    if array.size == 0:
        raise EvaluationError(f"{name} is empty, with shape {list(array.shape)}")
    if array.dtype == np.uint8:
        return 255.0
    if not np.issubdtype(array.dtype, np.floating):
        raise EvaluationError(f"{name} must be uint8 (0-255) or floating point in [0, 1], got {array.dtype}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0.0 and high <= 1.0):
        raise EvaluationError(
            f"{name} must lie in [0, 1] when floating point, got values from {low:g} to {high:g} (convert [-1, 1] by (x + 1) / 2)"
        )
    return 1.0


def _check_pair(original: np.ndarray, reconstruction: np.ndarray) -> float:
    peak = _check_image_values("original", original)
    if _check_image_values("reconstruction", reconstruction) != peak:
        raise EvaluationError(
            f"original is {original.dtype} but reconstruction is {reconstruction.dtype}: both must be uint8 or both [0, 1]"
        )
    if original.shape != reconstruction.shape:
        raise EvaluationError(
            f"original has shape {list(original.shape)} but reconstruction has {list(reconstruction.shape)}"
        )
    return peak
