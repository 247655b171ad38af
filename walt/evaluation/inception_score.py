"""The Inception score: how sure a classifier is of each clip, and how many classes it sees in all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError
from walt.evaluation.moments import check_features


@dataclass(frozen=True)
class Score:
    """Mean and standard deviation over the splits."""

    mean: float
    std: float


def inception_score(logits: Any, splits: int = 1) -> Score:
    """exp of the mean divergence KL(p(y|x) || p(y)) within each of `splits` runs of clips in their order (Salimans et al., 2016, arXiv:1606.03498).

    Between 1 (all clips alike, or none told apart) and the number of classes. Raises `EvaluationError` for fewer clips than splits.
    """
    logits = check_features(logits, "the", fewest=1)
    if not 1 <= splits <= len(logits):
        raise EvaluationError(f"an Inception score of {splits} splits needs as many clips, got {len(logits)}")
    scores = [_score(part) for part in np.array_split(_log_probabilities(logits), splits)]
    return Score(float(np.mean(scores)), float(np.std(scores)))


def _log_probabilities(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _score(logs: Float[np.ndarray, "n c"]) -> float:
    probabilities = np.exp(logs)
    of_all = np.log(np.maximum(probabilities.mean(0), np.finfo(float).tiny))
    return float(np.exp((probabilities * (logs - of_all)).sum(1).mean()))
