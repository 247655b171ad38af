"""The Fréchet distance against closed forms and an independent form of the root."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walt.evaluation import EvaluationError, frechet_distance


def whitened(rows, features, seed):
    """Features of mean 0 and covariance 1, exactly."""
    x = np.random.default_rng(seed).normal(size=(rows, features))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_equals_the_closed_form_of_gaussians_on_the_same_axes():
    x, scale, shift = whitened(50, 4, 0), np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.0, 1.0, -2.0, 0.5])
    expected = np.square(shift).sum() + np.square(scale - 1).sum()
    assert frechet_distance(x, whitened(60, 4, 1) * scale + shift) == pytest.approx(expected, rel=1e-10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 12), st.integers(2, 12))
def test_is_symmetric_not_negative_and_zero_for_equal_sets(seed, features, rows, others):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(rows, features)), random.normal(size=(others, features)) * 2 + 1
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-6)
    assert frechet_distance(a, b) > -1e-6
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_equals_the_trace_of_the_root_of_the_product():
    # The form that publications print: the trace of (S1 S2)^½ is the sum of the roots of that product's own eigenvalues.
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(30, 5)) @ random.normal(size=(5, 5)) for _ in range(2))
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(s @ t).astype(complex)).real.sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s) + np.trace(t) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_features_that_cannot_be_compared_are_named():
    x = np.zeros((3, 2))
    for real, generated, message in (
        (x[:1], x, "real features must be at least 2 rows"),
        (x, x[0], "generated features must be at least 2 rows"),
        (x, x * np.nan, "generated features must be at least 2 rows of finite"),
        (x, np.zeros((3, 4)), "real clips have 2 features each, generated ones 4"),
    ):
        with pytest.raises(EvaluationError, match=message):
            frechet_distance(real, generated)
