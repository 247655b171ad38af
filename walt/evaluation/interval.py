"""How far a figure of two sets of features would move had other clips been drawn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from walt.evaluation.clips import EvaluationError
from walt.evaluation.moments import check_both

Measure = Callable[[np.ndarray, np.ndarray], float]
REPEATS, LEVEL = 100, 0.95


def confidence_interval(
    measure: Measure,
    real: Float[np.ndarray, "n d"],
    generated: Float[np.ndarray, "m d"],
    *,
    centre: float | None = None,
    share: float = 0.5,
    repeats: int = REPEATS,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """An interval of `level` around `centre`, by default `measure(real, generated)`, by a bootstrap without replacement (Politis & Romano, 1994).

    The usual bootstrap draws clips several times over, which a Fréchet distance takes for a smaller set and nearest neighbours for copies.
    This one measures random subsets of a `share` of both sets, whose figures spread around their mean by sqrt(1 / share - 1) times what
    whole sets would: by as much, for halves. Their mean, which has the larger bias of small sets, is put at the centre: the
    figure that is reported, which can be another estimate, or the mean over several generated sets.

    Raises `EvaluationError` as the measure does, and where a subset would have fewer than two clips.
    """
    real, generated = check_both(real, generated)
    if not 0 < share < 1 or repeats < 2 or not 0 < level < 1:
        raise EvaluationError(
            f"an interval needs 0 < share < 1, 0 < level < 1 and 2 repeats, got {share}, {level}, {repeats}"
        )
    sizes = int(len(real) * share), int(len(generated) * share)
    if min(sizes) < 2:
        raise EvaluationError(f"an interval needs subsets of at least 2 clips, got {min(sizes)}")
    random = np.random.default_rng(seed)
    draws = np.array(
        [
            measure(*(rows[random.permutation(len(rows))[:size]] for rows, size in zip((real, generated), sizes)))
            for _ in range(repeats)
        ]
    )
    spread = (draws - draws.mean()) / np.sqrt(1 / share - 1)
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])
    centre = measure(real, generated) if centre is None else centre
    return float(centre + low), float(centre + high)
