"""The training clip closest to each sample, so that a reader can see whether a sample is a copy.

Distance: root mean square of the pixel differences over all frames and channels, on the [0, 1] scale, with no alignment in time or space.
The same distance of real held-out clips says what is usual for footage that the model never saw: samples that lie clearly closer to the
training set than held-out footage does are suspect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from walt.evaluation.clips import Clips, EvaluationError, check_same_shape
from walt.evaluation.threads import one_blas_thread

DISTANCE = "root-mean-square pixel difference over all frames, on the 0-1 scale"

_CHUNK = 64

_MARGIN = 1e-4
"""Relative to the squared lengths; a float32 product over one frame is off by up to about 4e-5 where it is summed naively, 1e-8 by BLAS."""


@dataclass(frozen=True, eq=False)
class NearestResult:
    """For every query clip, its nearest training clip (`clips`, in query order) and their distance on the [0, 1] scale, float64 [N]."""

    distances: np.ndarray
    clips: Clips

    @property
    def mean_distance(self) -> float:
        """Mean over the queries."""
        return float(self.distances.mean())


@one_blas_thread
def nearest_clips(queries: Clips, training: Iterable[Clips]) -> NearestResult:
    """The training clip nearest to each query; the earliest of several equally near ones. Walks `training` once, in small pieces.

    float32 matrix products rule out all clips but a few, whose distances are then taken in integers: the answer is exact, and a copy has
    distance zero. Costs 2·N·M·T·H·W·3 operations for N queries and M training clips, and memory for the queries in float32.
    Raises `EvaluationError` when clip shapes differ or there is no training clip.
    """
    centred = _centred(queries.videos)
    lengths = _squared_lengths(centred)
    best = np.full(len(queries), np.iinfo(np.int64).max)
    videos = np.zeros_like(queries.videos)
    labels, ids, prompts = ([""] * len(queries) for _ in range(3))
    for large in training:
        check_same_shape("training", large, "generated", queries)
        for piece in large.chunks(_CHUNK):
            others = _centred(piece.videos)
            sums = lengths[:, None] + _squared_lengths(others)[None]
            lower = sums - 2.0 * _products(centred, others) - _MARGIN * sums
            hopeful = (lower < best[:, None]) & (lower <= (lower + 2 * _MARGIN * sums).min(axis=1, keepdims=True))
            for row, column in np.argwhere(hopeful):
                squared = _squared_distance(queries.videos[row], piece.videos[column])
                if squared < best[row]:
                    best[row], videos[row], labels[row] = squared, piece.videos[column], piece.labels[column]
                    ids[row] = piece.ids[column] if piece.ids else ""
                    prompts[row] = piece.prompts[column] if piece.prompts else ""
    if best.max() == np.iinfo(np.int64).max:
        raise EvaluationError("no training clips to search (an exhausted generator? pass a list or PreparedClips)")
    distances = np.sqrt(best / queries.videos[0].size) / 255.0
    return NearestResult(distances, Clips(videos, tuple(labels), tuple(prompts), tuple(ids)))


def _centred(videos: np.ndarray) -> np.ndarray:
    """float32 [T, N, D]: frames first, for one small product per frame; centred, since shorter vectors lose less to rounding."""
    flat = videos.reshape(videos.shape[0], videos.shape[1], -1).transpose(1, 0, 2)
    return flat.astype(np.float32, order="C") - np.float32(128)


def _squared_lengths(centred: np.ndarray) -> np.ndarray:
    # In float64, hence exact: a float32 sum of many equal squares (a bright frame) is off by more than the margin.
    return np.einsum("tnd,tnd->n", centred, centred, dtype=np.float64)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    total = np.zeros((a.shape[1], b.shape[1]))
    for frame_a, frame_b in zip(a, b):
        total += frame_a @ frame_b.T
    return total


def _squared_distance(a: np.ndarray, b: np.ndarray) -> int:
    difference = a.astype(np.int32) - b
    return int(np.square(difference).sum(dtype=np.int64))
