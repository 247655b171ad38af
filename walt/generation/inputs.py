"""What a task is given, as it takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from walt.data import media
from walt.generation.catalogue import Kind, Option, Task
from walt.generation.clips import as_picture, converted_length
from walt.generation.fit import VideoSize
from walt.generation.request import GenerationError
from walt.generation.shots import Storyboard, read_storyboard

Input = np.ndarray | Mapping[int, np.ndarray] | Storyboard
"""A picture [H, W, 3] or a video [T, H, W, 3] of uint8, a mask [H, W] of bool, pictures by their frame, or a storyboard with its pictures."""
Inputs = Mapping[str, Input]
"""By argument."""


def read_input(
    kind: Kind, source: Any, size: VideoSize, limits: media.Limits = media.LIMITS
) -> tuple[Input, float | None]:
    """(what a task takes, frames per second of a video), see `walt.generation.catalogue`.

    `source` is a file, and of `pictures` a file for each frame. A mask is a picture that is white where something is to be painted; it is scaled and cropped
    to `size` as a clip is. `MediaError` for a file that cannot be read, or is more than the limits allow.
    """
    match kind:
        case "video":
            return media.read_video(source, limits)
        case "pictures":
            return {frame: media.read_image(path, limits) for frame, path in source.items()}, None
        case "storyboard":
            return read_storyboard(source), None
        case "mask":
            return as_picture(media.read_image(source, limits), size, "mask")[0].max(axis=-1) > 127, None
        case _:
            return media.read_image(source, limits), None


def as_option(name: str, value: Any, option: Option) -> Any:
    """The value of an option, of the kind that it has: a browser sends 3.0 for 3. `GenerationError` for what is none."""
    shown = repr(str(value)[:40])
    if isinstance(option.default, bool):
        if not isinstance(value, bool):
            raise GenerationError(f"{name} must be true or false, got {shown}")
        return value
    if option.choices:
        if value not in option.choices:
            raise GenerationError(f"{name} must be one of {', '.join(option.choices)}, got {shown}")
        return value
    whole = isinstance(option.low, int)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not option.low <= value <= option.high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise GenerationError(f"{name} must be {kind} from {option.low:g} to {option.high:g}, got {shown}")
    return int(value) if whole else float(value)


def expected_frames(task: Task, num_frames: int, options: Mapping[str, Any], inputs: Inputs, fps: float) -> int:
    """The most frames that a task will hold, made or given, as far as that can be told before it is begun; `fps` are those of the model, to which
    clips are converted."""
    given = sum(_length(pixels, options.get("clip_fps", fps), fps) for pixels in inputs.values() if _is_clip(pixels))
    if "num_frames" in task.sizes or task.words == "shots":
        return max(num_frames, given)
    added = round(options.get("seconds", 0.0) * fps) * (2 if options.get("direction") == "both" else 1)
    if not given:
        return added or num_frames
    return (given + added - 1) * options.get("factor", 1) + 1


def _is_clip(given: Input) -> TypeGuard[np.ndarray]:
    return isinstance(given, np.ndarray) and given.ndim == 4


def _length(clip: np.ndarray, clip_fps: float, fps: float) -> int:
    return converted_length(len(clip), clip_fps, fps) or len(clip)
