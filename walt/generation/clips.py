"""Clips and pictures that a task is given: of the model's size and frame rate, or converted to it, which is said."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from walt.generation.fit import VideoSize
from walt.generation.request import GenerationError, check_video

Clip = UInt8[np.ndarray, "t h w 3"]


def as_clip(
    video: Any, size: VideoSize, *, what: str = "video", clip_fps: float | None = None, fps: float | None = None
) -> Clip:
    """The clip in the height and width of `size`, and in frames per second `fps` if it is of `clip_fps`.

    Another size is scaled to fill the picture, and what is too wide or too high is cut off both sides alike; of another frame rate, the nearest frame is
    taken. Prints a line for either.

    Raises:
      GenerationError: it is no clip.
    """
    check_clip(video, what)
    places = None
    if clip_fps is not None and fps is not None and (count := converted_length(len(video), clip_fps, fps)) is not None:
        print(f"{what}: {len(video)} frames at {clip_fps:g} fps are {count} at {fps:g} fps, which the model makes")
        places = np.minimum(np.round(np.arange(count) * clip_fps / fps).astype(int), len(video) - 1)
        # Each frame once until it is scaled: those of a slow clip are shown many times.
        used, places = np.unique(places, return_inverse=True)
        video = video[used]
    if video.shape[1:3] != (size.height, size.width):
        print(
            f"{what}: {video.shape[1]}x{video.shape[2]} is scaled and cropped to {size.height}x{size.width}, which the model makes"
        )
        video = np.stack([_filled(frame, size.height, size.width) for frame in video])
    return video if places is None else video[places]


def converted_length(count: int, clip_fps: float, fps: float) -> int | None:
    """Frames that so many at `clip_fps` are at `fps`; None for rates that are the same."""
    if not 0 < clip_fps < math.inf:
        raise GenerationError(f"the frame rate of a clip must be positive, got {clip_fps}")
    return None if abs(clip_fps - fps) <= 0.01 * fps else max(1, round(count * fps / clip_fps))


def check_clip(video: Any, what: str = "video") -> None:
    """Raises `GenerationError` for what is no uint8 [T, H, W, 3]."""
    if isinstance(video, np.ndarray) and video.ndim != 4:
        raise GenerationError(f"{what} must be one clip, [T, H, W, 3], got shape {video.shape}")
    check_video(video)


def as_picture(image: Any, size: VideoSize, what: str = "image") -> Clip:
    """A clip of one frame, of uint8 [H, W, 3] or [1, H, W, 3]; see `as_clip`."""
    clip = as_clip(image[None] if isinstance(image, np.ndarray) and image.ndim == 3 else image, size, what=what)
    if len(clip) != 1:
        raise GenerationError(f"{what} must be one picture, [H, W, 3], got {len(clip)} frames")
    return clip


def _filled(frame: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "i j 3"]:
    scale = max(height / frame.shape[0], width / frame.shape[1])
    rows, columns = height / scale, width / scale
    top, left = (frame.shape[0] - rows) / 2, (frame.shape[1] - columns) / 2
    box = (left, top, left + columns, top + rows)
    resampling = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(frame).resize((width, height), resampling, box=box))


def as_mask(mask: Any, video: Clip) -> np.ndarray:
    """True where a video is to be painted anew: bool [T, H, W], or one for all frames, [H, W].

    Raises:
      GenerationError: it is of another size than the video, or asks for nothing, or for numbers that are no yes or no.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim not in (2, 3):
        raise GenerationError(
            f"mask must be an array [H, W] or [T, H, W], got {getattr(mask, 'shape', type(mask).__name__)}"
        )
    if mask.dtype != np.bool_:
        if not set(np.unique(mask)) <= {0, 1, 255}:
            raise GenerationError(
                "mask must be True (or 255) where the video is painted anew and False (or 0) elsewhere"
            )
        mask = mask > 0
    if mask.shape[-2:] != video.shape[1:3] or (mask.ndim == 3 and len(mask) not in (1, len(video))):
        raise GenerationError(
            f"mask is of {'x'.join(map(str, mask.shape))}, but the video has {len(video)} frames of {video.shape[1]}x{video.shape[2]}"
        )
    mask = np.broadcast_to(mask, video.shape[:3])
    if not mask.any():
        raise GenerationError("mask is False everywhere: there is nothing to paint")
    return mask
