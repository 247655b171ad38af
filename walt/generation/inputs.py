"""Files that a task is given, as it takes them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from walt.data import media
from walt.generation.clips import as_picture
from walt.generation.fit import VideoSize


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


def expected_frames(
    task: Any, num_frames: int, options: dict[str, Any], inputs: dict[str, np.ndarray], fps: float
) -> int:
    """How many frames a task will make, at least, before it is begun."""
    if "num_frames" in task.sizes:
        return num_frames
    added = options.get("seconds", 0.0) * fps * (2 if options.get("direction") == "both" else 1)
    given = sum(len(pixels) for name, pixels in inputs.items() if task.inputs[name] == "video")
    return max(num_frames if not given else 1, round((given + added) * options.get("factor", 1)))
