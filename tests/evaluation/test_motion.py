import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.evaluation.clips import Clips
from walt.evaluation.motion import frame_difference, motion_ratio


def steps(*levels: int) -> np.ndarray:
    """A clip whose frames are uniformly at these levels."""
    return np.stack([np.full((2, 2, 3), level, np.uint8) for level in levels])


def test_frame_difference_by_hand():
    # |51 - 0| and |0 - 51|: 51/255 = 0.2 each; the second clip only moves once, by 102/255, over two steps.
    videos = np.stack([steps(0, 51, 0), steps(0, 0, 102)])
    np.testing.assert_allclose(frame_difference(videos), [0.2, 0.2], rtol=1e-12)
    np.testing.assert_allclose(frame_difference(np.stack([steps(255, 0)])), [1.0], rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_frame_difference_equals_the_definition(seed, frames):
    videos = np.random.default_rng(seed).integers(0, 256, (3, frames, 4, 5, 3), dtype=np.uint8)
    expected = np.abs(np.diff(videos.astype(float), axis=1)).mean(axis=(1, 2, 3, 4)) / 255
    np.testing.assert_allclose(frame_difference(videos), expected, rtol=1e-12)


def test_a_single_frame_has_no_motion_to_measure():
    with pytest.raises(ValueError, match="at least 2 frames"):
        frame_difference(np.zeros((1, 1, 2, 2, 3), np.uint8))


def test_ratios_and_their_interval_by_hand():
    real = Clips(np.stack([steps(0, 40, 0)] * 4), ("a", "b", "c", "d"))
    generated = Clips(
        np.stack([steps(0, 20, 0), steps(0, 80, 0), steps(0, 81, 0), steps(0, 19, 0)]), ("a", "b", "c", "d")
    )
    result = motion_ratio(generated, real)
    assert [result.per_label[label].ratio for label in "abcd"] == pytest.approx([0.5, 2.0, 81 / 40, 19 / 40])
    assert (result.within, result.labels) == (2, 4)  # both ends of the interval count
    assert result.motion_ratio == pytest.approx((20 + 80 + 81 + 19) / 160)


def test_a_perfect_copy_has_ratio_one_and_static_clips_zero(footage):
    real = footage(3)
    copy = motion_ratio(real, real)
    assert copy.motion_ratio == pytest.approx(1.0) and copy.within == copy.labels == 4
    static = Clips(np.repeat(real.videos[:, :1], 5, axis=1), real.labels)
    frozen = motion_ratio(static, real)
    assert frozen.motion_ratio == 0.0 and frozen.within == 0
    assert all(entry.ratio == 0.0 for entry in frozen.per_label.values())


def test_still_real_footage_gives_no_ratio(footage):
    real = footage(2)
    static = Clips(np.repeat(real.videos[:, :1], 5, axis=1), real.labels)
    result = motion_ratio(real, static)
    assert result.motion_ratio is None and result.within == 0 and result.labels == 4
    assert result.per_label["amber"].ratio is None


def test_a_label_without_real_clips_is_named(footage):
    with pytest.raises(ValueError, match="'blue'"):
        motion_ratio(footage(1), footage(1, games=("amber",)))
