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

DISTANCE = "root-mean-square pixel difference over all frames, on the 0-1 scale"

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class NearestResult:
    """For every query clip, its nearest training clip (`clips`, in query order) and their distance on the [0, 1] scale, float64 [N]."""

    distances: np.ndarray
    clips: Clips

    @property
    def mean_distance(self) -> float:
        """Mean over the queries."""
        return float(self.distances.mean())


def nearest_clips(queries: Clips, training: Iterable[Clips]) -> NearestResult:
    """The training clip nearest to each query; the earliest of several equally near ones. Walks `training` once, in small pieces.

    Costs about 2·N·M·(T·H·W·3) operations for N queries and M training clips, in memory one piece of 64 training clips in float64 beside the
    queries. Raises `EvaluationError` when clip shapes differ or there is no training clip.
    """
    flat = queries.videos.reshape(len(queries), -1).astype(np.float64)
    squares = np.einsum("nd,nd->n", flat, flat)
    best = np.full(len(queries), np.inf)
    videos = np.zeros_like(queries.videos)
    labels, ids, prompts = ([""] * len(queries) for _ in range(3))
    for large in training:
        check_same_shape("training", large, "generated", queries)
        for piece in large.chunks(_CHUNK):
            candidates = piece.videos.reshape(len(piece), -1).astype(np.float64)
            # Integers below 2^53 throughout, hence exact: a copy has distance zero, and ties are real ties.
            squared = squares[:, None] + np.einsum("md,md->m", candidates, candidates)[None] - 2.0 * flat @ candidates.T
            nearest = squared.argmin(axis=1)
            values = squared[np.arange(len(queries)), nearest]
            for row in np.flatnonzero(values < best):
                column = int(nearest[row])
                best[row], videos[row], labels[row] = values[row], piece.videos[column], piece.labels[column]
                ids[row] = piece.ids[column] if piece.ids else ""
                prompts[row] = piece.prompts[column] if piece.prompts else ""
    if np.isinf(best).any():
        raise EvaluationError("no training clips to search (an exhausted generator? pass a list or PreparedClips)")
    distances = np.sqrt(best / flat.shape[1]) / 255.0
    return NearestResult(distances, Clips(videos, tuple(labels), tuple(prompts), tuple(ids)))
