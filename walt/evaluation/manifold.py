"""Fidelity and diversity apart: where generated features lie among real ones and real ones among generated, by nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError
from walt.evaluation.moments import check_both

NEIGHBOURS = 5
_ROWS = 1024


@dataclass(frozen=True)
class Manifold:
    """Shares of clips. A clip's ball reaches to its `NEIGHBOURS`-th nearest neighbour of its own kind.

    Attributes:
      precision: generated clips within the ball of any real clip; fidelity.
      recall: real clips within the ball of any generated clip; diversity (both Kynkäänniemi et al., 2019, arXiv:1904.06991).
      density: balls of real clips that hold a generated clip, over `NEIGHBOURS`, mean over generated clips; may exceed 1.
      coverage: real clips whose ball holds any generated clip (both Naeem et al., 2020, arXiv:2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real_features: Any, generated_features: Any, neighbours: int = NEIGHBOURS) -> Manifold:
    """All four, in memory that grows with the number of clips and not with its square.

    Raises `EvaluationError` unless there are more clips of each kind than neighbours, of finite features, equally many for each clip.
    """
    if neighbours < 1:
        raise EvaluationError(f"the number of neighbours must be positive, got {neighbours}")
    real, generated = check_both(real_features, generated_features, fewest=neighbours + 1)
    real_radii, generated_radii = _squared_radii(real, neighbours), _squared_radii(generated, neighbours)
    inside_real = np.zeros(len(generated), np.int64)
    covered, recalled = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distances in _squared_distances(generated, real):
        inside = distances <= real_radii
        inside_real[rows] = inside.sum(1)
        covered |= inside.any(0)
        recalled |= (distances <= generated_radii[rows, None]).any(0)
    return Manifold(
        precision=float((inside_real > 0).mean()),
        recall=float(recalled.mean()),
        density=float(inside_real.mean() / neighbours),
        coverage=float(covered.mean()),
    )


def _squared_radii(x: Float[np.ndarray, "n d"], neighbours: int) -> Float[np.ndarray, " n"]:
    radii = np.empty(len(x))
    for rows, distances in _squared_distances(x, x):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = -1  # itself, before any copy
        radii[rows] = np.partition(distances, neighbours, axis=1)[:, neighbours]
    return radii


def _squared_distances(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Iterator[tuple[slice, np.ndarray]]:
    """(some rows of x, their squared distances to all of y)."""
    centre = y.mean(0)  # products of features far from zero would lose the digits that tell them apart
    x, y = x - centre, y - centre
    lengths = np.square(y).sum(1)
    for start in range(0, len(x), _ROWS):
        piece = x[start : start + _ROWS]
        squared = np.square(piece).sum(1)[:, None] + lengths - 2 * piece @ y.T
        yield slice(start, start + len(piece)), np.maximum(squared, 0)
