"""Precision, recall, density and coverage against their definitions in loops, and in cases with known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walt.evaluation import EvaluationError
from walt.evaluation.manifold import manifold


def in_loops(real, generated, neighbours):
    def radius(s, i):
        return sorted(np.linalg.norm(s[i] - s[j]) for j in range(len(s)) if j != i)[neighbours - 1]

    real_radii, generated_radii = ([radius(s, i) for i in range(len(s))] for s in (real, generated))
    inside = [[np.linalg.norm(g - r) <= radius for r, radius in zip(real, real_radii)] for g in generated]
    within = [[np.linalg.norm(g - r) <= radius for g, radius in zip(generated, generated_radii)] for r in real]
    return (
        np.mean([any(row) for row in inside]),
        np.mean([any(row) for row in within]),
        np.sum(inside) / (neighbours * len(generated)),
        np.mean([any(row[i] for row in inside) for i in range(len(real))]),
    )


@given(st.integers(0, 2**32 - 1), st.integers(4, 9), st.integers(4, 9), st.integers(1, 3), st.integers(1, 3))
def test_are_their_definitions(seed, rows, others, features, neighbours):
    random = np.random.default_rng(seed)
    real, generated = random.normal(size=(rows, features)) + 100, random.normal(size=(others, features)) * 1.5 + 100.3
    found = manifold(real, generated, neighbours)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(
        in_loops(real, generated, neighbours)
    )


def test_pieces_of_large_sets_make_no_difference(monkeypatch):
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(50, 3)), random.normal(size=(40, 3))
    whole = manifold(real, generated)
    monkeypatch.setattr("walt.evaluation.manifold._ROWS", 7)
    assert manifold(real, generated) == whole


def test_say_which_side_fails():
    random = np.random.default_rng(0)
    real = random.normal(size=(300, 4))
    alike = manifold(real, random.normal(size=(300, 4)))
    assert min(alike.precision, alike.recall, alike.coverage) > 0.8 and alike.density == pytest.approx(1, abs=0.15)
    collapsed = manifold(real, random.normal(size=(300, 4)) * 0.05)
    assert collapsed.precision == 1 and collapsed.recall < 0.05 and collapsed.coverage < 0.3
    far = manifold(real, random.normal(size=(300, 4)) + 50)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_too_few_clips_are_refused():
    x = np.random.default_rng(0).normal(size=(5, 2))
    with pytest.raises(EvaluationError, match=r"real features must be at least 6 rows"):
        manifold(x, x)
    with pytest.raises(EvaluationError, match=r"neighbours must be positive, got 0"):
        manifold(x, x, neighbours=0)
