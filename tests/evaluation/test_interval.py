"""Intervals against standard errors that are known, and how often they hold the truth."""

import numpy as np
import pytest

from walt.evaluation import EvaluationError, frechet_distance
from walt.evaluation.interval import confidence_interval


def apart(real, generated):
    return float(generated.mean() - real.mean())


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_is_as_wide_as_the_standard_error_says(share):
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(400, 1)), random.normal(size=(300, 1)) * 2
    low, high = confidence_interval(apart, real, generated, share=share, repeats=2000)
    expected = 2 * 1.96 * np.sqrt(real.var() / 400 + generated.var() / 300)
    assert high - low == pytest.approx(expected, rel=0.06)
    assert (low + high) / 2 == pytest.approx(apart(real, generated), abs=0.05 * expected)


def test_holds_the_truth_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    for seed in range(300):
        low, high = confidence_interval(
            apart, random.normal(size=(40, 1)), random.normal(size=(40, 1)) + 1, repeats=200, level=0.8, seed=seed
        )
        held += low < 1 < high
    assert 0.72 < held / 300 < 0.88


def test_of_a_frechet_distance_is_that_of_its_spread_over_fresh_sets():
    """Numbers of variance 1 and 4, one apart: the distance is 2, its variance by the delta method 4 (1 + 4) / n + 2 · (1 / 2 + 2) / n."""
    random, count = np.random.default_rng(0), 2000
    draw = lambda: (random.normal(size=(count, 1)), random.normal(size=(count, 1)) * 2 + 1)  # noqa: E731
    low, high = confidence_interval(frechet_distance, *draw(), repeats=400)
    fresh = np.std([frechet_distance(*draw()) for _ in range(400)])
    assert high - low == pytest.approx(2 * 1.96 * fresh, rel=0.15)
    assert low < 2 < high


def test_lies_around_the_figure_that_is_given_without_measuring_whole_sets():
    sizes, x = set(), np.random.default_rng(0).normal(size=(30, 2))

    def seen(real, generated):
        sizes.add(len(real))
        return apart(real, generated)

    low, high = confidence_interval(seen, x, x + 1, centre=50.0, repeats=9)
    assert low < 50 < high and high - low < 10 and sizes == {15}


def test_too_few_clips_and_odd_settings_are_refused():
    x = np.random.default_rng(0).normal(size=(3, 2))
    with pytest.raises(EvaluationError, match="subsets of at least 2 clips, got 1"):
        confidence_interval(frechet_distance, x, x)
    with pytest.raises(EvaluationError, match="0 < share < 1"):
        confidence_interval(frechet_distance, x, x, share=1.0)
