"""Whole files through a pipeline, without ever holding a whole video."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from walt.autoencoder import Tiling
from walt.data import media
from walt.data.bar import progress_bar
from walt.generation.pipeline import Pipeline


def reconstruct_file(
    pipeline: Pipeline,
    source: Path,
    output: Path,
    *,
    chunk: int = 16,
    tiling: Tiling | None = None,
    side_by_side: bool = False,
) -> SquaredError:
    """Writes the reconstruction of the video `source` as `output` (.mp4 or .webm); returns its error.

    Memory depends on `chunk`, the frames processed at a time, and not on the length of the video. Raises `MediaError` as
    reading and writing do.
    """
    count, originals, error = len(media.frame_times(source)), _Recorder(), SquaredError()
    frames = (frame for _, frame in media.iterate_frames(source))
    shown = progress_bar(frames, total=count, unit="frame", desc="reconstructing")
    with media.video_writer(output, media.frame_rate(source)) as write:
        for made in pipeline.reconstruct_stream(originals.recorded(_chunked(shown, chunk)), tiling):
            original = originals.take(len(made))
            error.add(original, made)
            write(np.concatenate([original, made], axis=2) if side_by_side else made)
    return error


def _chunked(frames: Iterable[np.ndarray], size: int) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
    """Frames in chunks of `size`, the first of which has one more: the autoencoder takes frame 0 on its own."""
    pending: list[np.ndarray] = []
    wanted = size + 1
    for frame in frames:
        pending.append(frame)
        if len(pending) == wanted:
            yield np.stack(pending)
            pending, wanted = [], size
    if pending:
        yield np.stack(pending)


class _Recorder:
    """Holds what has gone in until as much has come out."""

    def __init__(self) -> None:
        self._held: list[np.ndarray] = []

    def recorded(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same chunks; their frames are kept."""
        for chunk in chunks:
            self._held.extend(chunk)
            yield chunk

    def take(self, count: int) -> UInt8[np.ndarray, "t h w 3"]:
        """The oldest `count` frames, which are then forgotten."""
        taken, self._held = self._held[:count], self._held[count:]
        return np.stack(taken)


class SquaredError:
    """The mean squared error of a video that passes by."""

    def __init__(self) -> None:
        self.frames = self._values = 0
        self._sum = 0.0

    def add(self, original: UInt8[np.ndarray, "t h w 3"], made: UInt8[np.ndarray, "t h w 3"]) -> None:
        """Counts in more frames."""
        self._sum += float(np.square(original.astype(np.float32) - made).sum(dtype=np.float64))
        self._values, self.frames = self._values + made.size, self.frames + len(made)

    def psnr(self) -> float:
        """In dB, over all pixels of all frames."""
        mse = self._sum / self._values
        return math.inf if mse == 0 else 10.0 * math.log10(255.0**2 / mse)
