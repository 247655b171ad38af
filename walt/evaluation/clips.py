"""Sets of clips, which is all that the metrics of this room see: uint8 videos of one shape with a label each.

A label names what a clip shows in one word (the game of an Atari clip); a prompt is the full caption it was generated from. Training sets
are too large to hold at once and reach the metrics as an iterable of `Clips` chunks that can be walked more than once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8


class EvaluationError(ValueError):
    """What was given cannot be measured or shown; the message names it and says what would be right."""


class UndefinedError(EvaluationError):
    """The clips given do not define a figure; the message says what they lack."""


def check_videos(videos: Any, name: str = "videos") -> None:
    """Raises `EvaluationError` unless `videos` is uint8 [N, T, H, W, 3] with no zero-length axis."""
    if not isinstance(videos, np.ndarray):
        raise EvaluationError(f"{name} must be a numpy array of uint8 [N, T, H, W, 3], got {type(videos).__name__}")
    if videos.dtype != np.uint8:
        raise EvaluationError(f"{name} must have dtype uint8 (0-255), got {videos.dtype}")
    if videos.ndim != 5 or videos.shape[-1] != 3 or 0 in videos.shape:
        raise EvaluationError(f"{name} must have shape [N, T, H, W, 3] with no empty axis, got {list(videos.shape)}")


@dataclass(frozen=True, eq=False)
class Clips:
    """`videos` uint8 [N, T, H, W, 3] with one label per clip, and optionally one prompt and one id per clip.

    Raises `EvaluationError` for another dtype or shape, or when the number of labels, prompts or ids is not N.
    """

    videos: UInt8[np.ndarray, "n t h w 3"]
    labels: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_videos(self.videos)
        for name in ("labels", "prompts", "ids"):
            values = tuple(str(value) for value in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != len(self.videos) and (values or name == "labels"):
                raise EvaluationError(f"{len(self.videos)} clips need as many {name}, got {len(values)}")

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        return tuple(self.videos.shape[1:])

    @property
    def label_names(self) -> tuple[str, ...]:
        """The distinct labels in sorted order, which is the order of every table."""
        return tuple(sorted(set(self.labels)))

    def rows_of(self, label: str) -> np.ndarray:
        """Indices of the clips with this label, ascending."""
        return np.flatnonzero(np.asarray(self.labels) == label)

    def take(self, rows: Sequence[int] | np.ndarray) -> Clips:
        """These rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        pick = lambda values: tuple(values[i] for i in rows) if values else ()  # noqa: E731
        return Clips(self.videos[rows], pick(self.labels), pick(self.prompts), pick(self.ids))

    def chunks(self, size: int) -> Iterator[Clips]:
        """Consecutive pieces of at most `size` clips."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))


def check_same_shape(name: str, clips: Clips, other_name: str, other: Clips) -> None:
    """Raises `EvaluationError` unless both sets have clips of one shape: distances and motion of unlike clips do not compare."""
    if clips.clip_shape != other.clip_shape:
        raise EvaluationError(
            f"{name} clips are {list(clips.clip_shape)} but {other_name} clips are {list(other.clip_shape)}: "
            "generate at the frame count, height and width of the real clips"
        )


def check_labels_known(name: str, clips: Clips, other_name: str, known: Sequence[str]) -> None:
    """Raises `EvaluationError` when `clips` carries a label that `known` does not."""
    unknown = sorted(set(clips.labels) - set(known))
    if unknown:
        raise EvaluationError(
            f"{name} clips have the label {unknown[0]!r}, which {other_name} lack (they have: {', '.join(known)})"
        )


def evenly_spaced(count: int, limit: int) -> np.ndarray:
    """At most `limit` of the indices 0..count-1, evenly spaced and ascending: a deterministic subset that covers the whole range."""
    return np.arange(count) if count <= limit else np.arange(limit) * count // limit
