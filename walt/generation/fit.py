"""Sizes the autoencoder does not take: round up, pad by repeating the edge, crop back.

The encoder itself refuses them, so that no size is changed silently; `Pipeline` and `walt reconstruct` come through
here and say what they did.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped


class VideoSize(NamedTuple):
    """Frames, height and width in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames} frame{'' if self.frames == 1 else 's'} of {self.height}x{self.width}"


def fit_size(size: VideoSize, time_factor: int = 4, space_factor: int = 8) -> VideoSize:
    """The smallest size that the autoencoder takes and that holds `size`: 1 + time_factor·k frames, sides multiples of
    space_factor. Prints a line if it differs."""
    frames, height, width = size
    fitted = VideoSize(
        1 + -(-(frames - 1) // time_factor) * time_factor,
        -(-height // space_factor) * space_factor,
        -(-width // space_factor) * space_factor,
    )
    if fitted != size:
        print(
            f"{size} is rounded up to {fitted} (1 + {time_factor}k frames, sides multiples of {space_factor}) and cropped back"
        )
    return fitted


def fit(
    video: Shaped[np.ndarray, "*n t h w c"], time_factor: int = 4, space_factor: int = 8
) -> tuple[Shaped[np.ndarray, "*n T H W c"], Callable[[np.ndarray], np.ndarray]]:
    """The video padded to a size the autoencoder takes by repeating its last frame, row and column, and the function
    that crops a result back."""
    size = VideoSize(*video.shape[-4:-1])
    fitted = fit_size(size, time_factor, space_factor)
    padding = [(0, 0)] * (video.ndim - 4) + [(0, big - small) for big, small in zip(fitted, size)] + [(0, 0)]
    return np.pad(video, padding, mode="edge"), lambda result: result[
        ..., : size.frames, : size.height, : size.width, :
    ]
