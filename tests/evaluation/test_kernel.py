"""The kernel distance against its definition in loops, against scikit-learn's kernel, and its bias."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel

from walt.evaluation import EvaluationError, kernel_distance


def in_loops(x, y):
    kernel = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731
    within = sum(
        sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    )
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(2, 7), st.integers(1, 4))
def test_is_its_definition(seed, rows, others, features):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(rows, features)), random.normal(size=(others, features)) + 1
    assert kernel_distance(x, y) == pytest.approx(in_loops(x, y), rel=1e-9, abs=1e-9)
    assert kernel_distance(y, x) == pytest.approx(kernel_distance(x, y), rel=1e-9, abs=1e-9)


def test_is_that_of_an_independent_kernel():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 400)), random.normal(size=(50, 400)) * 1.2
    kernel = lambda a, b: polynomial_kernel(a, b, degree=3, coef0=1)  # noqa: E731
    off = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # noqa: E731
    assert kernel_distance(x, y) == pytest.approx(
        off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean(), rel=1e-9
    )


def test_has_no_bias_and_is_the_closed_form_on_average():
    """For numbers of mean m and variance 1 the kernel's expectation is a polynomial of their moments."""
    random, shift, draws = np.random.default_rng(0), 0.7, []
    for _ in range(4000):
        draws.append(kernel_distance(random.normal(size=(5, 1)), random.normal(size=(5, 1)) + shift))
    raw = lambda m: np.array([1, m, m**2 + 1, m**3 + 3 * m])  # noqa: E731  # moments 0 to 3
    difference = raw(0) - raw(shift)
    expected = (np.array([1, 3, 3, 1]) * difference**2).sum()  # (xy + 1)^3 by the binomial theorem
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected) < 3 * error and error < expected / 10
    same = [kernel_distance(random.normal(size=(5, 2)), random.normal(size=(5, 2))) for _ in range(4000)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same)) and min(same) < 0


def test_subsets_estimate_the_whole():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(400, 3)), random.normal(size=(300, 3)) + 0.5
    whole = kernel_distance(x, y)
    assert kernel_distance(x, y, subsets=200, subset_size=100) == pytest.approx(whole, rel=0.1)
    assert kernel_distance(x, y, subsets=1, subset_size=1000) == pytest.approx(whole, rel=1e-9)
    assert kernel_distance(x, y, subsets=2, subset_size=50, seed=1) == kernel_distance(
        x, y, subsets=2, subset_size=50, seed=1
    )
    with pytest.raises(EvaluationError, match="at least 2 clips, got 1"):
        kernel_distance(x, y, subsets=2, subset_size=1)
    with pytest.raises(EvaluationError, match="real clips have 3 features each, generated ones 2"):
        kernel_distance(x, y[:, :2])
