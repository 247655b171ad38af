import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.evaluation import reconstruction as r
from walt.evaluation.clips import Clips


def test_psnr_of_a_constant_error_by_hand():
    # Every pixel off by 51 = 0.2 on the [0, 1] scale: MSE 0.04, PSNR 10 log10(25).
    original = np.full((2, 4, 4, 3), 100, np.uint8)
    assert r.psnr(original, original + np.uint8(51)) == pytest.approx(10 * math.log10(25), abs=1e-12)
    assert r.psnr(original + np.uint8(51), original) == pytest.approx(13.979400086720377, abs=1e-12)


def test_psnr_of_one_wrong_value_by_hand():
    # One value of 12 off by 255: MSE 1/12.
    original = np.zeros((1, 2, 2, 3), np.uint8)
    wrong = original.copy()
    wrong[0, 0, 0, 0] = 255
    assert r.psnr(original, wrong) == pytest.approx(10 * math.log10(12), abs=1e-12)


def test_equal_arrays_have_infinite_psnr():
    video = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert r.psnr(video, video.copy()) == math.inf


def test_float_input_is_on_the_unit_scale():
    random = np.random.default_rng(0)
    a, b = (random.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8) for _ in range(2))
    assert r.psnr(a / 255.0, b / 255.0) == pytest.approx(r.psnr(a, b), abs=1e-9)
    assert r.moving_pixel_psnr(a / 255.0, b / 255.0) == pytest.approx(r.moving_pixel_psnr(a, b), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9))
def test_psnr_equals_the_textbook_formula_and_is_symmetric(seed, frames, side):
    random = np.random.default_rng(seed)
    a, b = (random.integers(0, 256, (frames, side, side, 3), dtype=np.uint8) for _ in range(2))
    expected = 20 * math.log10(255) - 10 * math.log10(np.mean((a.astype(int) - b.astype(int)) ** 2))
    assert r.psnr(a, b) == pytest.approx(expected, abs=1e-9)
    assert r.psnr(b, a) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("function", [r.psnr, r.moving_pixel_psnr])
@pytest.mark.parametrize(
    ("original", "other", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.int32), np.zeros((2, 4, 4, 3), np.int32), "int32"),
        (np.zeros((2, 4, 4, 3), bool), np.zeros((2, 4, 4, 3), bool), "bool"),
        (np.full((2, 4, 4, 3), -0.5), np.zeros((2, 4, 4, 3)), r"from -0.5 to -0.5"),
        (np.zeros((2, 4, 4, 3)), np.full((2, 4, 4, 3), 255.0), r"reconstruction must lie in \[0, 1\]"),
        (np.full((2, 4, 4, 3), np.nan), np.zeros((2, 4, 4, 3)), "from nan to nan"),
        (
            np.zeros((2, 4, 4, 3), np.uint8),
            np.zeros((2, 4, 4, 3), np.float32),
            "original is uint8 but reconstruction is float32",
        ),
        (
            np.zeros((2, 4, 4, 3), np.uint8),
            np.zeros((3, 4, 4, 3), np.uint8),
            r"\[2, 4, 4, 3\] but reconstruction has \[3, 4, 4, 3\]",
        ),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), "empty"),
        ([[0.0]], np.zeros((1, 1)), "numpy array, got list"),
    ],
)
def test_bad_input_is_named(function, original, other, words):
    with pytest.raises(ValueError, match=words):
        function(original, other)


def blinking(low: int, high: int) -> np.ndarray:
    """A 4-frame black clip of 2x2 pixels in which the red channel of pixel (0, 1) blinks between two values."""
    video = np.zeros((4, 2, 2, 3), np.uint8)
    video[:, 0, 1, 0] = [low, high, low, high]
    return video


def test_moving_pixels_cut_exactly_at_the_threshold():
    # Half the frames at each value: the standard deviation is (high - low) / 2, in levels of 255: 12.75 is 0.05.
    assert r.moving_pixels(blinking(100, 126)).tolist() == [[False, True], [False, False]]  # 13 levels
    assert not r.moving_pixels(blinking(100, 125)).any()  # 12.5 levels
    # A threshold that the deviation equals exactly (51 levels = 0.2) is not exceeded.
    assert not r.moving_pixels(blinking(0, 102), threshold=0.2).any()
    assert r.moving_pixels(blinking(0, 102), threshold=0.1999).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.floats(0.0, 0.4))
def test_moving_pixels_equal_the_definition(seed, frames, threshold):
    video = np.random.default_rng(seed).integers(0, 256, (2, frames, 3, 3, 3), dtype=np.uint8)
    deviation = (video / 255.0).std(axis=1).max(axis=-1)
    clear = np.abs(deviation - threshold) > 1e-9
    assert np.array_equal(r.moving_pixels(video, threshold)[clear], (deviation > threshold)[clear])


def test_moving_psnr_looks_at_moving_pixels_alone():
    original = blinking(0, 200)
    spoiled = original.copy()
    spoiled[:, 1, 1] = 255  # a still pixel: no effect
    assert r.moving_pixel_psnr(original, spoiled) == math.inf
    spoiled[0, 0, 1, 2] = 255  # one of 4 frames x 3 channels of the moving pixel
    assert r.moving_pixel_psnr(original, spoiled) == pytest.approx(10 * math.log10(12), abs=1e-9)
    assert r.psnr(original, spoiled) < r.moving_pixel_psnr(original, spoiled)


def test_moving_psnr_of_a_still_clip_is_not_a_number():
    still = np.full((4, 2, 2, 3), 7, np.uint8)
    assert math.isnan(r.moving_pixel_psnr(still, still))


def test_mean_frames_do_not_depend_on_the_chunks(footage):
    training = footage(6, seed=3)
    whole = r.mean_frames([training])
    for size in (1, 4, 7):
        pieces = r.mean_frames(training.chunks(size))
        assert list(pieces) == list(whole)
        assert all(np.array_equal(pieces[label], whole[label]) for label in whole)
    by_hand = training.videos[training.rows_of("coral")].astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(whole["coral"], by_hand, rtol=1e-12)


def test_mean_frames_of_nothing_are_refused(footage):
    exhausted = footage(1).chunks(2)
    list(exhausted)
    with pytest.raises(ValueError, match="no training clips"):
        r.mean_frames(exhausted)


def one_label(video: np.ndarray, label: str = "a") -> Clips:
    return Clips(video[None], (label,))


def test_baselines_by_hand():
    heldout = one_label(blinking(0, 100))
    # The mean frame says 50 where the truth is 0 or 100; the first frame is right in half of the frames and 100 off in the others.
    means = r.mean_frames([heldout])
    result = r.compare_reconstructions(heldout, heldout.videos, means)
    moving_values = 3  # colour channels of the one moving pixel, of which one is wrong
    assert result.psnr_mean_frame == pytest.approx(10 * math.log10(255**2 * moving_values / 50**2), abs=1e-5)
    assert result.psnr_first_frame_repeated == pytest.approx(
        10 * math.log10(255**2 * moving_values / (100**2 / 2)), abs=1e-5
    )
    assert result.psnr_mean_frame_all_pixels == pytest.approx(result.psnr_mean_frame + 10 * math.log10(4), abs=1e-5)
    assert result.psnr_first_frame_repeated_all_pixels == pytest.approx(
        result.psnr_first_frame_repeated + 10 * math.log10(4), abs=1e-5
    )
    # A perfect copy stands at the ceiling, which keeps the JSON form finite.
    assert result.heldout_psnr == result.psnr_moving == r.CEILING_DB
    assert result.psnr_moving_gain == pytest.approx(
        r.CEILING_DB - max(result.psnr_mean_frame, result.psnr_first_frame_repeated)
    )
    assert result.per_label["a"].moving_fraction == 0.25


def test_baselines_given_as_reconstructions_score_as_the_baselines(footage):
    heldout, training = footage(40, seed=1), footage(5, seed=2)
    means = r.mean_frames([training])
    first = np.repeat(heldout.videos[:, :1], heldout.clip_shape[0], axis=1)
    result = r.compare_reconstructions(heldout, first, means)
    assert result.psnr_moving == pytest.approx(result.psnr_first_frame_repeated, abs=1e-9)
    assert result.heldout_psnr == pytest.approx(result.psnr_first_frame_repeated_all_pixels, abs=1e-9)
    mean = np.stack(
        [np.broadcast_to(np.rint(means[label]).astype(np.uint8), heldout.clip_shape) for label in heldout.labels]
    )
    result = r.compare_reconstructions(heldout, mean, means)
    assert result.psnr_moving == pytest.approx(result.psnr_mean_frame, abs=0.02)  # rounding to uint8
    assert result.psnr_moving_gain is not None and result.psnr_moving_gain <= 0.02


def test_figures_equal_the_single_functions_label_by_label(footage):
    heldout = footage(35, seed=5)  # more than one internal chunk
    noise = np.random.default_rng(0).integers(-20, 21, heldout.videos.shape)
    reconstructions = np.clip(heldout.videos + noise, 0, 255).astype(np.uint8)
    result = r.compare_reconstructions(heldout, reconstructions, r.mean_frames([heldout]))
    for label, entry in result.per_label.items():
        rows = heldout.rows_of(label)
        assert entry.psnr == pytest.approx(r.psnr(heldout.videos[rows], reconstructions[rows]), abs=1e-6)
        assert entry.psnr_moving == pytest.approx(
            r.moving_pixel_psnr(heldout.videos[rows], reconstructions[rows]), abs=1e-6
        )
        assert entry.clips == 35
    assert result.heldout_psnr == pytest.approx(np.mean([entry.psnr for entry in result.per_label.values()]))


def test_a_still_label_has_no_moving_figures_and_stays_out_of_their_mean():
    moving, still = blinking(0, 100), np.full((4, 2, 2, 3), 9, np.uint8)
    heldout = Clips(np.stack([moving, still]), ("moving", "still"))
    off = np.where(heldout.videos < 250, heldout.videos + 5, heldout.videos).astype(np.uint8)
    result = r.compare_reconstructions(heldout, off, r.mean_frames([heldout]))
    assert result.per_label["still"].psnr_moving is None
    assert result.per_label["still"].psnr_mean_frame is None
    assert result.psnr_moving == pytest.approx(10 * math.log10((255 / 5) ** 2))


def test_comparison_refuses_what_does_not_fit(footage):
    heldout = footage(2)
    with pytest.raises(ValueError, match="reconstructions must have dtype uint8"):
        r.compare_reconstructions(heldout, heldout.videos / 255.0)
    with pytest.raises(ValueError, match="reconstructions must have the shape"):
        r.compare_reconstructions(heldout, heldout.videos[1:])
    means = r.mean_frames([footage(1, games=("amber",))])
    with pytest.raises(ValueError, match="label 'blue'"):
        r.compare_reconstructions(heldout, heldout.videos, means)
    without = r.compare_reconstructions(heldout, heldout.videos)
    assert without.psnr_mean_frame is None and without.psnr_first_frame_repeated is not None
