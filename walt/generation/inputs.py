"""Files that a task is given, as it takes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from walt.data import media
from walt.generation.catalogue import OPTIONS, Task
from walt.generation.clips import as_picture
from walt.generation.fit import VideoSize
from walt.generation.request import GenerationError


def read_input(
    kind: str, path: str | os.PathLike, size: VideoSize, limits: media.Limits = media.LIMITS
) -> tuple[np.ndarray, float | None]:
    """(pixels, frames per second of a video) of an `image`, a `video` or a `mask`, see `walt.generation.catalogue`.

    A mask is a picture that is white where something is to be painted; it is scaled and cropped to `size` as a clip is. `MediaError` for a file that cannot
    be read, or is more than the limits allow.
    """
    if kind == "video":
        return media.read_video(path, limits)
    picture = media.read_image(path, limits)
    return (as_picture(picture, size, "mask")[0].max(axis=-1) > 127 if kind == "mask" else picture), None


def as_option(name: str, value: Any) -> Any:
    """The value of an option of some task, of the kind that it has: a browser sends 3.0 for 3. `GenerationError` for what is none."""
    option, shown = OPTIONS[name], repr(str(value)[:40])
    if isinstance(option.default, bool):
        if not isinstance(value, bool):
            raise GenerationError(f"{name} must be true or false, got {shown}")
        return value
    if option.choices:
        if value not in option.choices:
            raise GenerationError(f"{name} must be one of {', '.join(option.choices)}, got {shown}")
        return value
    whole = isinstance(option.default, int)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not option.low <= value <= option.high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise GenerationError(f"{name} must be {kind} from {option.low:g} to {option.high:g}, got {shown}")
    return int(value) if whole else float(value)


def expected_frames(
    task: Task, num_frames: int, options: Mapping[str, Any], inputs: Mapping[str, np.ndarray], fps: float
) -> int:
    """How many frames a task will make, as far as that can be told before it is begun."""
    if "num_frames" in task.sizes:
        return num_frames
    added = options.get("seconds", 0.0) * fps * (2 if options.get("direction") == "both" else 1)
    given = sum(len(pixels) for name, pixels in inputs.items() if task.inputs[name] == "video")
    return round(given + added - 1) * options.get("factor", 1) + 1 if given else num_frames
