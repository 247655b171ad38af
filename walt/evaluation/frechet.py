"""The Fréchet distance of two sets of features, each taken for a Gaussian, and what it tends to for ever more samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError
from walt.evaluation.moments import Moments, check_both, check_features, check_widths

Matrix = Float[np.ndarray, "d d"]
SIZES = 10
"""Numbers of samples that `frechet_at_infinity` puts its line through."""


def frechet_distance(real: Any, generated: Any, estimator: str = "eigh", divisor: str = "N-1") -> float:
    """|mu_1 - mu_2|² + tr(S_1 + S_2 - 2 (S_1^½ S_2 S_1^½)^½), in float64 (Dowson & Landau 1982).

    The distance of finite samples is larger than that of what they were drawn from, and the more so the fewer they are: only figures of
    equal counts can be compared.

    Args:
      real, generated: features [clips, features], or `Moments` of them.
      estimator: "eigh" takes roots by the eigenvalues of symmetric matrices, so the result is real and finite for covariances of any
        rank, such as those of fewer clips than features. "tfgan" takes them by singular values and leaves those below 1e-10 as they are,
        as TF-GAN does; for covariances without full rank it is larger by some 1e-6.
      divisor: of the covariances, "N-1" or "N".

    Raises:
      EvaluationError: not at least two rows of finite numbers, equally many in each row; another estimator or divisor.
    """
    if estimator not in ESTIMATORS:
        raise EvaluationError(f"the estimator must be {' or '.join(ESTIMATORS)}, got {estimator!r}")
    of_real, of_generated = _moments(real, "real"), _moments(generated, "generated")
    check_widths(len(of_real.mean), len(of_generated.mean))
    real_covariance, generated_covariance = of_real.covariance(divisor), of_generated.covariance(divisor)
    between = np.square(of_real.mean - of_generated.mean).sum()
    overlap = ESTIMATORS[estimator](real_covariance, generated_covariance)
    return float(between + np.trace(real_covariance) + np.trace(generated_covariance) - 2 * overlap)


def _moments(features: Any, name: str) -> Moments:
    return features if isinstance(features, Moments) else Moments.of(check_features(features, name))


def _overlap_eigh(a: Matrix, b: Matrix) -> float:
    """tr (a^½ b a^½)^½."""
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum())


def _overlap_tfgan(a: Matrix, b: Matrix) -> float:
    root = _root_tfgan(a)
    return float(np.trace(_root_tfgan(root @ b @ root)))


def _root_tfgan(matrix: Matrix) -> Matrix:
    u, values, v = np.linalg.svd(matrix)
    return (u * np.where(values < 1e-10, values, np.sqrt(values))) @ v


ESTIMATORS: Mapping[str, Callable[[Matrix, Matrix], float]] = {"eigh": _overlap_eigh, "tfgan": _overlap_tfgan}


@dataclass(frozen=True)
class AtInfinity:
    """The distance that a line over 1 / N meets at 0, and the line's standard error there."""

    value: float
    standard_error: float


def frechet_at_infinity(
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m d"],
    estimator: str = "eigh",
    divisor: str = "N-1",
    seed: int = 0,
) -> AtInfinity:
    """The distance without the bias of finite samples (Chong & Forsyth, 2020, arXiv:1911.07023), by equally many of both sets.

    The bias goes with 1 / N once covariances have full rank, so the line is put through numbers of samples from half of the smaller set
    to all of it. Raises `EvaluationError` where half of it is fewer than there are features, and as `frechet_distance`.
    """
    real, generated = check_both(real, generated)
    count, width = min(len(real), len(generated)), real.shape[1]
    if count < 2 * width:
        raise EvaluationError(
            f"the distance at infinity needs at least {2 * width} clips of each kind for {width} features, got {count}"
        )
    random = np.random.default_rng(seed)
    inverses = np.linspace(2 / count, 1 / count, SIZES)
    distances = []
    for size in np.rint(1 / inverses).astype(int):
        pick = lambda features: features[random.permutation(len(features))[:size]]  # noqa: B023, E731
        distances.append(frechet_distance(pick(real), pick(generated), estimator, divisor))
    (_, value), covariance = np.polyfit(inverses, distances, 1, cov=True)
    return AtInfinity(float(value), float(np.sqrt(covariance[1, 1])))
