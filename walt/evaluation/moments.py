"""Mean and covariance of features that come batch by batch or host by host, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError

DIVISORS = ("N-1", "N")


def check_features(features: Any, name: str, fewest: int = 2) -> Float[np.ndarray, "n d"]:
    """As float64. Raises `EvaluationError` unless they are at least `fewest` rows of finite numbers."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < fewest or not features.shape[1] or not np.isfinite(features).all():
        raise EvaluationError(
            f"{name} features must be at least {fewest} rows of finite numbers [clips, features], got {list(features.shape)}"
        )
    return features


def check_both(real: Any, generated: Any, fewest: int = 2) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]]:
    """Both sets as float64. Raises `EvaluationError` as `check_features`, and for unequal numbers of features."""
    real, generated = check_features(real, "real", fewest), check_features(generated, "generated", fewest)
    check_widths(real.shape[1], generated.shape[1])
    return real, generated


def check_widths(real: int, generated: int) -> None:
    """Raises `EvaluationError` unless these numbers of features are equal."""
    if real != generated:
        raise EvaluationError(f"real clips have {real} features each, generated ones {generated}")


@dataclass(frozen=True, eq=False)
class Moments:
    """Of `count` rows: their mean [d] and the sum of the products of their deviations from it [d, d].

    Sums about the mean lose no digits, however far that is from zero, so the order of merging makes no difference that shows.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Any, name: str = "the") -> Moments:
        """Of at least one row of finite numbers; raises `EvaluationError` for anything else."""
        features = check_features(features, name, fewest=1)
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Of both sets of rows together (Chan, Golub & LeVeque, 1979). Raises `EvaluationError` for unequal numbers of features."""
        check_widths(len(self.mean), len(other.mean))
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Of all parts together, in their order; `EvaluationError` if there are none."""
        total = None
        for part in parts:
            total = part if total is None else total.merge(part)
        if total is None:
            raise EvaluationError("there are no features to take moments of")
        return total

    def covariance(self, divisor: str = "N-1") -> Float[np.ndarray, "d d"]:
        """Over `divisor`, "N-1" or "N". Raises `EvaluationError` for others, and for a single row."""
        if divisor not in DIVISORS:
            raise EvaluationError(f"a covariance is over {' or '.join(DIVISORS)}, got {divisor!r}")
        if self.count < 2:
            raise EvaluationError("a covariance needs at least 2 clips, got 1")
        return self.scatter / (self.count - (divisor == "N-1"))
