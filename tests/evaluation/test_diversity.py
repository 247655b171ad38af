import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.evaluation.clips import Clips
from walt.evaluation.diversity import diversity_ratio, mean_pairwise_distance, pairwise_distances


def flat(*levels: int) -> np.ndarray:
    return np.stack([np.full((3, 2, 2, 3), level, np.uint8) for level in levels])


def test_distances_by_hand():
    # Uniform clips 51 levels apart are 0.2 apart, whatever their size.
    np.testing.assert_allclose(
        pairwise_distances(flat(0, 51, 255)), [[0, 0.2, 1], [0.2, 0, 0.8], [1, 0.8, 0]], atol=1e-12
    )
    assert mean_pairwise_distance(flat(0, 51, 255)) == pytest.approx((0.2 + 1 + 0.8) / 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_distances_equal_the_definition(seed, count):
    videos = np.random.default_rng(seed).integers(0, 256, (count, 3, 4, 5, 3), dtype=np.uint8)
    unit = videos / 255.0
    expected = np.sqrt(((unit[:, None] - unit[None]) ** 2).mean(axis=(2, 3, 4, 5)))
    np.testing.assert_allclose(pairwise_distances(videos), expected, atol=1e-12)


def test_equal_clips_are_at_distance_exactly_zero():
    video = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    assert np.array_equal(pairwise_distances(np.stack([video] * 3)), np.zeros((3, 3)))


def test_identical_samples_have_no_diversity_and_real_clips_have_all_of_it(footage):
    real = footage(6)
    collapsed = real.take([int(real.rows_of(label)[0]) for label in real.label_names for _ in range(3)])
    result = diversity_ratio(collapsed, real)
    assert result.diversity_ratio == 0.0
    assert all(entry.ratio == 0.0 and entry.real > 0 for entry in result.per_label.values())
    assert diversity_ratio(real, real).diversity_ratio == pytest.approx(1.0)


def test_half_the_distance_is_half_the_diversity():
    real = Clips(flat(0, 100, 0, 100), ("a", "a", "b", "b"))
    generated = Clips(flat(0, 50, 10, 60), ("a", "a", "b", "b"))
    assert diversity_ratio(generated, real).diversity_ratio == pytest.approx(0.5)


def test_pairs_share_their_prompt_not_just_their_label():
    real = Clips(flat(0, 100), ("a", "a"))
    # Two prompts of one label, each collapsed onto one picture of its own: no diversity within a prompt.
    generated = Clips(flat(0, 0, 200, 200), ("a",) * 4, ("left", "left", "right", "right"))
    assert diversity_ratio(generated, real).diversity_ratio == 0.0
    without_prompts = Clips(generated.videos, generated.labels)
    assert diversity_ratio(without_prompts, real).diversity_ratio == pytest.approx(2 * (4 / 6))


def test_labels_without_pairs_are_left_out_and_nothing_left_is_an_error():
    real = Clips(flat(0, 100, 0, 100), ("a", "a", "b", "b"))
    generated = Clips(flat(0, 50, 10), ("a", "a", "b"))
    assert list(diversity_ratio(generated, real).per_label) == ["a"]
    with pytest.raises(ValueError, match="at least 2 generated clips"):
        diversity_ratio(Clips(flat(0, 1), ("a", "b")), real)
    with pytest.raises(ValueError, match="at least 2 clips, got 1"):
        mean_pairwise_distance(flat(0))


def test_unlike_clips_are_refused(footage):
    with pytest.raises(ValueError, match="generate at the frame count, height and width"):
        diversity_ratio(footage(2), footage(2, side=24))


def test_equal_real_clips_give_no_ratio():
    result = diversity_ratio(Clips(flat(0, 50), ("a", "a")), Clips(flat(7, 7), ("a", "a")))
    assert result.diversity_ratio is None and result.per_label["a"].ratio is None
