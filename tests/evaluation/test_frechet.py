"""The Fréchet distance against closed forms and an independent form of the root."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from walt.evaluation import EvaluationError, frechet_distance
from walt.evaluation.frechet import frechet_at_infinity
from walt.evaluation.moments import Moments


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
    with pytest.raises(EvaluationError, match="the estimator must be eigh or tfgan, got 'sqrtm'"):
        frechet_distance(np.eye(3), np.eye(3), estimator="sqrtm")


@pytest.mark.parametrize("estimator", ["eigh", "tfgan"])
def test_both_estimators_agree_with_an_independent_root(estimator):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(60, 8)), random.normal(size=(50, 8)) @ random.normal(size=(8, 8))
    for divisor, ddof in (("N-1", 1), ("N", 0)):
        s, t = np.cov(a, rowvar=False, ddof=ddof), np.cov(b, rowvar=False, ddof=ddof)
        root = scipy.linalg.sqrtm(s @ t).real
        expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * root)
        assert frechet_distance(a, b, estimator, divisor) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(Moments.of(a), Moments.of(b), estimator, divisor) == frechet_distance(
            a, b, estimator, divisor
        )


def test_tfgan_leaves_small_singular_values_as_they_are():
    """Of covariances of rank 1, one axis each: the product is rounding alone, and its root is what the rule is about."""
    a, b = np.zeros((9, 3)), np.zeros((9, 3))
    a[:, 0], b[:, 0] = np.arange(9) * 1e-5, np.arange(9) * 2e-5
    s, t = a[:, 0].var(ddof=1), b[:, 0].var(ddof=1)
    between = np.square(a.mean(0) - b.mean(0)).sum()
    assert s > 1e-10 > s * t  # so that the second root is not taken
    assert frechet_distance(a, b, "tfgan") == pytest.approx(between + s + t - 2 * s * t, rel=1e-9)
    assert frechet_distance(a, b, "eigh") == pytest.approx(between + s + t - 2 * np.sqrt(s * t), rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 40))
def test_estimators_are_real_and_finite_at_any_rank(seed, rows, features):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(rows, features)), random.normal(size=(rows, features))
    values = [frechet_distance(a, b, estimator) for estimator in ("eigh", "tfgan")]
    assert np.isfinite(values).all() and values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-3)


def test_at_infinity_the_bias_of_few_samples_is_gone():
    random, width = np.random.default_rng(0), 6
    scale, shift = np.linspace(0.5, 2, width), 0.3
    truth = width * shift**2 + np.square(scale - 1).sum()
    errors, raw = [], []
    for seed in range(40):
        real, generated = random.normal(size=(120, width)), random.normal(size=(150, width)) * scale + shift
        found = frechet_at_infinity(real, generated, seed=seed)
        errors.append(found.value - truth)
        raw.append(frechet_distance(real, generated) - truth)
        assert 0 < found.standard_error < truth
    assert np.mean(raw) > 0.12  # the bias that there is to take away
    assert abs(np.mean(errors)) < np.mean(raw) / 3


def test_at_infinity_needs_as_many_clips_as_make_full_rank():
    x = np.random.default_rng(0).normal(size=(19, 10))
    with pytest.raises(EvaluationError, match="at least 20 clips of each kind for 10 features, got 19"):
        frechet_at_infinity(x, x)
