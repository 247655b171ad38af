"""Sizes the autoencoder does not take: round up, pad by repeating the edge, crop back.

The encoder itself refuses them, so that no size is changed silently; `Pipeline` and `walt reconstruct` come through
here and say what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def fit_stream(
    chunks: Iterable[Shaped[np.ndarray, "t h w c"]], time_factor: int = 4, space_factor: int = 8
) -> tuple[Iterator[np.ndarray], Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]]:
    """`fit` for a video that arrives in chunks and whose length shows only at its end.

    Returns the padded chunks, and the function that crops the chunks of a result back. A result's frames are given only
    once as many have been taken from `chunks`, so what was made of the padding at the end is left out.
    """
    taken, size = 0, VideoSize(0, 0, 0)

    def padded() -> Iterator[np.ndarray]:
        nonlocal taken, size
        for chunk in chunks:
            if not taken:
                size = VideoSize(1, *chunk.shape[1:3])
                fitted = fit_size(size, time_factor, space_factor)
            taken += len(chunk)
            padding = (*((0, big - small) for big, small in zip(fitted[1:], size[1:])), (0, 0))
            chunk = np.pad(chunk, ((0, 0), *padding), mode="edge")
            yield chunk
        if taken and (missing := -(taken - 1) % time_factor):
            yield np.repeat(chunk[-1:], missing, axis=0)

    def crop(results: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        given = 0
        for result in results:
            kept = result[: taken - given, : size.height, : size.width]
            given += len(kept)
            if len(kept):
                yield kept

    return padded(), crop
