"""The kernel distance of two sets of features, which has no bias and so is of use where clips are few."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError
from walt.evaluation.moments import check_both


def kernel_distance(
    real_features: Any, generated_features: Any, subsets: int = 0, subset_size: int = 1000, seed: int = 0
) -> float:
    """The squared maximum mean discrepancy under the kernel (x·y / d + 1)³ (Bińkowski et al., 2018, arXiv:1801.01401), float64.

    The estimate is unbiased: around zero for sets drawn alike, at times below it. With `subsets`, the mean over that many pairs of random
    subsets of `subset_size` (of all clips, where they are fewer), which costs less for large sets.

    Raises:
      EvaluationError: not at least two rows of finite numbers, equally many in each row; a subset of fewer than two.
    """
    real, generated = check_both(real_features, generated_features)
    if not subsets:
        return _unbiased(real, generated)
    if subset_size < 2:
        raise EvaluationError(f"a subset for the kernel distance needs at least 2 clips, got {subset_size}")
    random = np.random.default_rng(seed)
    pick = lambda features: features[random.permutation(len(features))[:subset_size]]  # noqa: E731
    return float(np.mean([_unbiased(pick(real), pick(generated)) for _ in range(subsets)]))


def _unbiased(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """The means over pairs of different rows within each set, less twice that over pairs between the sets."""
    return _among(x) + _among(y) - 2 * float(_kernel(x, y).mean())


def _among(x: Float[np.ndarray, "n d"]) -> float:
    with_themselves = (np.square(x).sum(1) / x.shape[1] + 1) ** 3
    return float((_kernel(x, x).sum() - with_themselves.sum()) / (len(x) * (len(x) - 1)))


def _kernel(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3
