"""Figures of fidelity on clips with known answers, and what simple codes keep."""

import io

import numpy as np
import pytest
from PIL import Image

from walt.evaluation import fidelity
from walt.evaluation.clips import EvaluationError


def noise(frames=5, side=32, seed=0, clips=2):
    return np.random.default_rng(seed).integers(0, 256, (clips, frames, side, side, 3), dtype=np.uint8)


def flat(value, shape=(2, 5, 32, 32, 3)):
    return np.full(shape, value, np.uint8)


def test_a_copy_is_perfect_and_a_known_error_has_its_psnr():
    clips = noise()
    same = fidelity.measure(clips, clips)
    assert same.psnr == 100 and same.ssim == pytest.approx(1) and same.sharpness == pytest.approx(1)
    shifted = fidelity.measure(flat(100), flat(110))
    assert shifted.psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-4) and shifted.sharpness is None


def test_the_mean_over_clips_is_not_that_of_the_pooled_error():
    video = flat(100)
    video[0], video[1] = 110, 101
    expected = np.mean([20 * np.log10(255 / 10), 20 * np.log10(255)])
    assert fidelity.measure(flat(100), video).psnr == pytest.approx(expected, abs=1e-4)


def test_sharpness_falls_with_blur_and_rises_with_noise():
    clips = noise()
    blurred = ((clips.astype(int) + np.roll(clips, 1, 2) + np.roll(clips, 1, 3) + np.roll(clips, 2, 3)) // 4).astype(np.uint8)  # fmt: skip
    assert fidelity.measure(clips, blurred).sharpness < 0.5
    ramp = np.linspace(50, 200, 32).astype(np.uint8)
    smooth = np.broadcast_to(ramp[:, None, None], (2, 5, 32, 32, 3))
    grainy = np.clip(smooth + np.random.default_rng(1).normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
    assert fidelity.measure(smooth, grainy).sharpness > 2


def test_motion_and_flicker_are_told_apart():
    """A square that moves evenly, and the same with frames that are lighter and darker in turn, or with every second frame repeated."""
    frames = np.zeros((1, 9, 32, 32, 3), np.uint8)
    for t in range(9):
        frames[0, t] = 100 + 4 * t
    flickering = frames.astype(int) + np.array([-6, 6] * 4 + [-6])[None, :, None, None, None]
    same, shimmer = (fidelity.measure(frames, videos.astype(np.uint8)) for videos in (frames, flickering))
    assert same.motion_ratio == 1 and same.flicker_ratio is None  # an even change has no change of its own
    assert shimmer.motion_ratio == pytest.approx((4 * 16 + 4 * 8) / (8 * 4))
    bent = np.rint(128 + 60 * np.sin(np.arange(9)))[None, :, None, None, None] * np.ones((1, 1, 32, 32, 3))
    smooth = bent.copy()
    smooth[:, 1:-1] = (bent[:, :-2] + 2 * bent[:, 1:-1] + bent[:, 2:]) / 4
    steadier = fidelity.measure(bent.astype(np.uint8), smooth.astype(np.uint8))
    assert steadier.flicker_ratio < steadier.motion_ratio < 1
    still = fidelity.measure(frames[:, :1], frames[:, :1])
    assert still.motion_ratio is None and still.flicker_ratio is None


def test_parts_of_clips_add_up_to_the_whole():
    random = np.random.default_rng(0)
    clips, made = (random.integers(0, 256, (5, 4, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    parts = fidelity.sums(clips[:2], made[:2]) + fidelity.sums(clips[2:], made[2:])
    assert vars(fidelity.of_sums(parts)) == pytest.approx(vars(fidelity.measure(clips, made)), rel=1e-6)


@pytest.mark.parametrize(("waves", "fine"), [(3, False), (15, False), (17, True), (31, True)])
def test_fine_detail_is_what_lies_above_half_of_nyquist(waves, fine):
    """A cosine of one DCT component: of 32 components those from 16 on are fine, along either axis."""
    wave = np.cos(np.pi * waves * (np.arange(32) + 0.5) / 32, dtype=np.float64)
    for picture in (np.tile(wave, (32, 1)), np.tile(wave[:, None], (1, 32))):
        video = np.repeat(picture[None, ..., None], 3, axis=-1)
        expected = np.square(video).mean() if fine else 0.0
        assert fidelity.fine_detail(video) == pytest.approx(expected, abs=1e-9)


def test_downsampling_keeps_what_it_says_and_is_exact_on_slow_and_smooth_clips():
    """A brightness that rises by 4 a frame is linear in time and flat in space."""
    clips = np.broadcast_to(
        np.arange(17, dtype=np.uint8)[None, :, None, None, None] * 4 + 20, (3, 17, 16, 24, 3)
    ).copy()
    coded = fidelity.downsampled(clips)
    np.testing.assert_array_equal(coded.videos, clips)
    assert coded.kept == "90 numbers"  # 5 frames of 2x3 means of 3 channels
    fine = noise(frames=17)
    coded = fidelity.downsampled(fine)
    assert coded.videos.std() < 0.3 * fine.std() and coded.videos.mean() == pytest.approx(fine.mean(), abs=1)


def test_downsampling_equals_the_library_frame_by_frame():
    clips = noise(frames=5)
    small = clips[:, ::4].reshape(2, 2, 4, 8, 4, 8, 3).mean((3, 5))
    frame = [np.asarray(Image.fromarray(small[1, 1, ..., c].astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC)) for c in range(3)]  # fmt: skip
    expected = np.clip(np.rint(np.stack(frame, -1)), 0, 255)
    np.testing.assert_array_equal(fidelity.downsampled(clips).videos[1, 4], expected)


def test_the_mean_colour_is_three_numbers():
    clips = noise()
    coded = fidelity.mean_colour(clips)
    assert coded.kept == "3 numbers"
    np.testing.assert_allclose(coded.videos[1, 3, 7, 9], clips[1].mean((0, 1, 2)), atol=0.5)
    assert all(len(np.unique(clip.reshape(-1, 3), axis=0)) == 1 for clip in coded.videos)


@pytest.mark.parametrize("size", [1500, 4000, 8000])
def test_the_jpeg_is_the_best_that_fits(size):
    clips = noise()
    picture = clips[0].reshape(-1, 32, 3)
    file = fidelity._best_jpeg(picture, size)
    assert len(file) <= size and Image.open(io.BytesIO(file)).size == (32, 160)
    qualities = [len(fidelity._as_jpeg(picture, quality)) for quality in range(1, 96)]
    assert len(file) == max(length for length in qualities if length <= size)


def test_more_bytes_make_a_better_jpeg_and_one_that_never_fits_says_its_size():
    clips = noise()
    few, many = (fidelity.measure(clips, fidelity.jpeg(clips, size).videos).psnr for size in (2000, 8000))
    assert many > few + 1
    assert int(fidelity.jpeg(clips, 10).kept.removesuffix(" bytes").replace(",", "")) > 10


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(EvaluationError, match=r"\[2, 5, 32, 32, 3\] but their reconstructions \[2, 5, 16, 16, 3\]"):
        fidelity.measure(noise(), noise(side=16))
    with pytest.raises(EvaluationError, match=r"at least 11x11, got \[8, 8\]"):
        fidelity.measure(noise(side=8), noise(side=8))
    with pytest.raises(EvaluationError, match=r"1 \+ 4k frames .* got \[4, 32, 32\]"):
        fidelity.downsampled(noise(frames=4))
    with pytest.raises(EvaluationError, match="at most 65500 rows"):
        fidelity.jpeg(np.zeros((1, 4, 20_000, 8, 3), np.uint8), 100)
