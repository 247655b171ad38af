"""How faithfully clips come back from a code: figures of fidelity, and simple codes for an autoencoder to stand beside.

A code is judged beside what it keeps of a clip, so each says how many numbers or bytes that is.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from walt.evaluation.clips import Clips, EvaluationError, check_videos

HIGH_FREQUENCY = 0.5
"""Share of the Nyquist frequency above which detail counts as fine."""

_CEILING_DB = 100.0
_LARGEST_JPEG = 65_500  # pixels of a side, a limit of the format

Videos = UInt8[np.ndarray, "n t h w 3"]


@dataclass(frozen=True)
class Fidelity:
    """Figures over all clips.

    Attributes:
      psnr: mean over clips of each clip's PSNR, dB.
      ssim: mean over frames (Wang et al., 2004; see `walt.autoencoder.ssim`).
      sharpness: energy of fine detail in all clips, reconstructions over originals: below 1 is blurred, above it noisy. `None`
        for originals without any.
      motion_ratio: mean absolute change from frame to frame, reconstructions over originals; `None` where these stand still.
      flicker_ratio: the same of the change of that change, which movement has little of and what comes and goes has much: above 1 flickers,
        below it is smoothed in time.
    """

    psnr: float
    ssim: float
    sharpness: float | None
    motion_ratio: float | None = None
    flicker_ratio: float | None = None


@dataclass(frozen=True, eq=False)
class Coded:
    """Clips after a code. `kept` says what of a clip the code keeps."""

    kept: str
    videos: Videos


@dataclass(frozen=True, eq=False)
class Comparison:
    """Codes of the same clips, by name, in the order in which they are shown, and the fidelity of each."""

    originals: Clips
    coded: Mapping[str, Coded]
    figures: Mapping[str, Fidelity]


def compare(originals: Clips, coded: Mapping[str, Coded]) -> Comparison:
    """Measures every code. Raises `EvaluationError` as `measure` does."""
    return Comparison(originals, coded, {name: measure(originals.videos, code.videos) for name, code in coded.items()})


def measure(originals: Videos, videos: Videos) -> Fidelity:
    """Raises `EvaluationError` for unlike shapes, and for frames below 11x11, which SSIM cannot compare."""
    return of_sums(sums(originals, videos))


SUMS = 9


def of_sums(totals: Float[np.ndarray, " 9"]) -> Fidelity:
    """The figures of clips whose `sums` were added up."""
    count, psnr, similarity, *pairs = (float(total) for total in totals)
    ratios = [made / real if real > 0 else None for real, made in zip(pairs[::2], pairs[1::2])]
    return Fidelity(psnr / count, similarity / count, *ratios)


def sums(originals: Videos, videos: Videos) -> Float[np.ndarray, " 9"]:
    """Over clips: their number, PSNR and SSIM; fine detail, motion and flicker, each of originals and of the others. Parts of a set of clips
    add up to the whole. Raises as `measure`."""
    from walt.autoencoder.ssim import WINDOW, ssim  # jax: those who only read figures need not wait for it

    check_videos(originals, "originals")
    check_videos(videos, "videos")
    if videos.shape != originals.shape:
        raise EvaluationError(f"originals are {list(originals.shape)} but their reconstructions {list(videos.shape)}")
    if min(originals.shape[2:4]) < WINDOW:
        raise EvaluationError(f"SSIM compares frames of at least {WINDOW}x{WINDOW}, got {list(originals.shape[2:4])}")
    total = np.zeros(SUMS)
    for original, video in zip(originals, videos):
        a, b = original.astype(np.float32) / 255, video.astype(np.float32) / 255
        psnr = min(-10 * np.log10(max(float(np.square(a - b).mean()), 1e-30)), _CEILING_DB)
        pairs = [fine_detail(a), fine_detail(b)]
        pairs += [_mean_change(clip, times) for times in (1, 2) for clip in (original, video)]
        total += [1, psnr, float(ssim(a, b).mean()), *pairs]
    return total


def _mean_change(video: UInt8[np.ndarray, "t h w c"], times: int) -> float:
    """From frame to frame, or of the change itself; in whole numbers, so that what does not change has exactly none."""
    return float(np.abs(np.diff(video.astype(np.int16), n=times, axis=0)).mean()) if len(video) > times else 0.0


def fine_detail(video: Float[np.ndarray, "t h w c"]) -> float:
    """Mean energy per value of the cosine components (DCT-II, which sees no edge at the border of a frame) whose frequency
    is at least half of Nyquist along either axis."""
    from scipy import fft

    components = fft.dctn(video, axes=(1, 2), norm="ortho")
    rows, columns = (np.arange(size) / size for size in video.shape[1:3])
    fine = np.maximum(rows[:, None], columns[None, :]) >= HIGH_FREQUENCY
    return float(np.square(components[:, fine]).sum() / video.size)


def simple_codes(videos: Videos, numbers: int) -> Mapping[str, Coded]:
    """The codes that an autoencoder keeping `numbers` per clip has to beat, by name. The JPEG gets a byte for each number.

    Raises `EvaluationError` for clips that are not 1 + 4k frames with sides that are multiples of 8.
    """
    return {"downsampled": downsampled(videos), "JPEG": jpeg(videos, numbers), "mean colour": mean_colour(videos)}


def mean_colour(videos: Videos) -> Coded:
    """Every clip as one colour."""
    colours = videos.mean(axis=(1, 2, 3), keepdims=True)
    return Coded("3 numbers", np.broadcast_to(np.rint(colours).astype(np.uint8), videos.shape).copy())


def downsampled(videos: Videos, space: int = 8, time: int = 4) -> Coded:
    """Every `time`-th frame as means over blocks of `space` x `space`, back by bicubic interpolation in space and linear
    interpolation in time."""
    check_videos(videos)
    _, frames, height, width, _ = videos.shape
    if (frames - 1) % time or height % space or width % space:
        raise EvaluationError(
            f"this code takes 1 + {time}k frames with sides that are multiples of {space}, got {list(videos.shape[1:4])}"
        )
    made = np.empty_like(videos)
    for row, clip in enumerate(videos):
        blocks = clip[::time].reshape(-1, height // space, space, width // space, space, 3)
        means = blocks.mean(axis=(2, 4), dtype=np.float32)
        large = np.stack([_bicubic(frame, height, width) for frame in means])
        made[row] = np.clip(np.rint(_linear_in_time(large, frames, time)), 0, 255)
    return Coded(f"{means.size:,} numbers", made)


def _linear_in_time(kept: Float[np.ndarray, "k h w 3"], frames: int, time: int) -> Float[np.ndarray, "t h w 3"]:
    position = np.arange(frames) / time
    before = position.astype(int)
    after = np.minimum(before + 1, len(kept) - 1)
    share = (position - before).astype(np.float32)[:, None, None, None]
    return (1 - share) * kept[before] + share * kept[after]


def jpeg(videos: Videos, size: int) -> Coded:
    """Every clip as one JPEG of its frames on top of one another, of the best quality that fits into `size` bytes.

    One picture, so that the tables of the format are paid for once. Where the lowest quality is larger, it is taken
    nevertheless, and `kept` tells.
    """
    check_videos(videos)
    _, frames, height, width, _ = videos.shape
    if max(frames * height, width) > _LARGEST_JPEG:
        raise EvaluationError(f"a JPEG has at most {_LARGEST_JPEG} rows; {frames} frames of {height} are more")
    files = [_best_jpeg(clip.reshape(frames * height, width, 3), size) for clip in videos]
    made = [np.asarray(Image.open(io.BytesIO(file))).reshape(frames, height, width, 3) for file in files]
    return Coded(f"{np.mean([len(file) for file in files]):,.0f} bytes", np.stack(made))


def _best_jpeg(picture: UInt8[np.ndarray, "h w 3"], size: int) -> bytes:
    """Bisects over the quality, 1 to 95, along which files grow."""
    low, high = 1, 95
    best = _as_jpeg(picture, low)
    while low < high:
        middle = (low + high + 1) // 2
        file = _as_jpeg(picture, middle)
        if len(file) <= size:
            low, best = middle, file
        else:
            high = middle - 1
    return best


def _as_jpeg(picture: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def _bicubic(frame: Float[np.ndarray, "h w 3"], height: int, width: int) -> Float[np.ndarray, "h2 w2 3"]:
    """Channel by channel, because Pillow knows floating point for grey pictures alone."""
    channels = [
        Image.fromarray(np.ascontiguousarray(frame[..., c])).resize((width, height), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
