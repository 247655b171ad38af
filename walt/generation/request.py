"""What may be asked of a pipeline: each check names the argument and what would be right."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import UInt8

from walt.generation.fit import VideoSize


class GenerationError(ValueError):
    """A request the model cannot serve; the message names the argument and what would be right."""


def check_prompts(prompt: Any) -> list[str]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, (list, tuple)) else None
    if prompts is None:
        raise GenerationError(f"prompt must be a string or a list of strings, got {type(prompt).__name__}")
    if not prompts:
        raise GenerationError("prompt is an empty list; give at least one prompt")
    for number, text in enumerate(prompts):
        if not isinstance(text, str):
            raise GenerationError(f"prompt {number} must be a string, got {type(text).__name__}")
        if not text.strip():
            raise GenerationError(f"prompt {number} is empty; say what the video should show")
    return prompts


def check_negative(text: Any) -> str:
    if not isinstance(text, str):
        raise GenerationError(f"negative_prompt must be a string, got {type(text).__name__}")
    if not text.strip():
        raise GenerationError("negative_prompt is empty; leave it out to steer away from no text")
    return text


def check_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise GenerationError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


def check_video(video: Any) -> None:
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8:
        found = f"an array of {video.dtype}" if isinstance(video, np.ndarray) else type(video).__name__
        raise GenerationError(f"a video must be a uint8 array of pixels from 0 to 255, got {found}")
    if video.ndim < 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise GenerationError(
            f"a video must have shape [T, H, W, 3], or that of several in an array, got {video.shape}"
        )


def check_numbers(numbers: Any, count: int, rows: int = 1) -> np.ndarray:
    """As an array, one of them for each video, which is drawn from so many of the 2**31 rows of a seed."""
    found = np.asarray(numbers)
    if found.shape != (count,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= 2**31 // rows:
        of = "videos" if rows == 1 else "videos longer than a window"
        raise GenerationError(
            f"numbers must be one whole number from 0 to {2**31 // rows - 1:,} for each of {count} {of}"
        )
    return found


def check_seed(seed: Any) -> None:
    """Refuses what is no 32-bit number."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise GenerationError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")


def check_low_resolution(
    videos: Any, count: int, low_size: VideoSize | None, video_size: VideoSize | None
) -> UInt8[np.ndarray, "n t i j 3"] | None:
    """The low resolution of every prompt; None for a model that takes none."""
    if low_size is None:
        if videos is not None:
            raise GenerationError("low_resolution is for a super-resolution model, which this is not")
        return None
    if videos is None:
        raise GenerationError(
            f"this super-resolution model makes {low_size} into {video_size}: give low_resolution, or name it as --cascade "
            "behind a model that makes such videos"
        )
    check_video(videos)
    videos = videos.reshape((-1, *videos.shape[-4:]))
    if videos.shape != (count, *low_size, 3):
        raise GenerationError(
            f"low_resolution must hold a video of {low_size} for each of {count} prompts, got {list(videos.shape)}"
        )
    return videos


def check_first_frames(
    videos: Any, count: int, size: VideoSize, lengths: Collection[int]
) -> UInt8[np.ndarray, "n k h w 3"] | None:
    """The known frames of every prompt, `lengths` of which the model was trained with; None for none."""
    if videos is None:
        return None
    if not lengths:
        raise GenerationError(
            "first_frames is for a model that was trained to go on from known frames, which this was not"
        )
    check_video(videos)
    videos = videos.reshape((-1, *videos.shape[-4:]))
    if len(videos) != count or videos.shape[1] not in lengths or videos.shape[2:] != (size.height, size.width, 3):
        raise GenerationError(
            f"first_frames must hold {' or '.join(map(str, lengths))} frames of {size.height}x{size.width} for each of {count} prompts, got "
            f"{list(videos.shape)}"
        )
    return videos


def check_scalars(known: Collection[str], **values: Any) -> dict[str, float]:
    """Those that are told."""
    told = {name: value for name, value in values.items() if value is not None}
    for name, value in told.items():
        if name not in known:
            raise GenerationError(f"{name} was given, but this model was not trained to be told it")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value and math.isfinite(value)):
            raise GenerationError(f"{name} must be a number, 0 or more, got {value!r}")
    return told
