"""The Fréchet distance of two sets of features, each taken for a Gaussian."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError


def frechet_distance(real_features: Float[np.ndarray, "n d"], generated_features: Float[np.ndarray, "m d"]) -> float:
    """|mu_1 - mu_2|² + tr(S_1 + S_2 - 2 (S_1^½ S_2 S_1^½)^½), in float64, covariances over N - 1 (Dowson & Landau 1982).

    The root is taken of the symmetric form by its eigenvalues, so the result is real and finite for covariances of any rank, such as those of
    fewer clips than features. The distance of finite samples is larger than that of what they were drawn from, and the more so the fewer
    they are: only figures of equal counts can be compared.

    Raises `EvaluationError` unless both are at least two rows of finite numbers, equally many in each row.
    """
    real, generated = (np.asarray(features, np.float64) for features in (real_features, generated_features))
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise EvaluationError(
                f"{name} features must be at least 2 rows of finite numbers [clips, features], got {list(features.shape)}"
            )
    if real.shape[1] != generated.shape[1]:
        raise EvaluationError(f"real clips have {real.shape[1]} features each, generated ones {generated.shape[1]}")
    real_covariance, generated_covariance = (
        np.cov(features, rowvar=False).reshape(real.shape[1], -1) for features in (real, generated)
    )
    root = _root(real_covariance)
    eigenvalues = np.linalg.eigvalsh(root @ generated_covariance @ root)
    overlap = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    between = np.square(real.mean(0) - generated.mean(0)).sum()
    return float(between + np.trace(real_covariance) + np.trace(generated_covariance) - 2 * overlap)


def _root(symmetric: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
