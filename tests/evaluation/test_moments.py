"""Moments merged in any order and grouping against two passes over all rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walt.evaluation import EvaluationError
from walt.evaluation.moments import Moments


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.randoms())
def test_merged_moments_are_those_of_all_rows(seed, sizes, features, order):
    random = np.random.default_rng(seed)
    offset = random.normal(size=features) * 1e4  # far from zero, where sums of squares would lose their digits
    rows = random.normal(size=(sum(sizes), features)).astype(np.float32) + offset
    parts = [Moments.of(piece) for piece in np.split(rows, np.cumsum(sizes)[:-1])]
    order.shuffle(parts)
    whole = Moments.merged(parts)
    mean = rows.mean(0)
    scatter = sum(np.outer(row - mean, row - mean) for row in rows)
    assert whole.count == len(rows)
    assert np.allclose(whole.mean, mean, rtol=1e-10, atol=0)
    assert np.abs(whole.scatter - scatter).max() <= 1e-10 * np.abs(scatter).max() + 1e-9
    tree = Moments.merged(parts[:1]).merge(Moments.merged(parts[1:])) if len(parts) > 1 else whole
    assert np.abs(tree.scatter - scatter).max() <= 1e-10 * np.abs(scatter).max() + 1e-9


def test_large_sets_are_exact():
    rows = np.random.default_rng(0).normal(size=(5000, 40)) @ np.random.default_rng(1).normal(size=(40, 40)) + 7
    whole = Moments.merged(Moments.of(rows[start : start + 64]) for start in range(0, 5000, 64))
    expected = np.cov(rows, rowvar=False)
    assert np.linalg.norm(whole.covariance() - expected) < 1e-12 * np.linalg.norm(expected)
    assert np.linalg.norm(whole.covariance("N") * 5000 / 4999 - expected) < 1e-12 * np.linalg.norm(expected)


def test_what_has_no_moments_is_refused():
    one = Moments.of(np.zeros((1, 3)))
    for make, message in (
        (lambda: Moments.of(np.zeros((0, 3))), "at least 1 rows"),
        (lambda: Moments.of([[1.0, np.inf]]), "finite"),
        (lambda: Moments.merged([]), "no features"),
        (lambda: one.merge(Moments.of(np.zeros((1, 2)))), "3 features each, generated ones 2"),
        (lambda: one.covariance(), "at least 2 clips"),
        (lambda: one.covariance("n"), "over N-1 or N, got 'n'"),
    ):
        with pytest.raises(EvaluationError, match=message):
            make()
