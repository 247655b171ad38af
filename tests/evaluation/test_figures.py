import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from walt.evaluation import figures


def decoded(uri: str) -> Image.Image:
    kind, content = uri.removeprefix("data:").split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.get_format_mimetype() == kind
    return image


def test_an_animation_holds_every_frame_enlarged_and_in_its_time():
    video = np.zeros((5, 8, 6, 3), np.uint8)
    for t in range(5):
        video[t] = 50 * t
    image = decoded(figures.animation(video, fps=10, scale=3))
    assert image.n_frames == 5 and image.size == (18, 24) and image.info["loop"] == 0
    for t in range(5):
        image.seek(t)
        image.load()
        assert image.info["duration"] == 100
        assert np.abs(np.asarray(image.convert("RGB"), float) - 50 * t).max() <= 3


def test_enlarged_pixels_keep_their_colours():
    # Single red and blue pixels would fade into each other if colour were stored at half resolution.
    video = np.zeros((2, 8, 8, 3), np.uint8)
    video[:, ::2, ::2, 0] = 255
    video[:, 1::2, 1::2, 2] = 255

    def error(scale: int) -> float:
        image = decoded(figures.animation(video, fps=5, scale=scale))
        back = np.asarray(image.convert("RGB"), float).reshape(8, scale, 8, scale, 3).mean(axis=(1, 3))
        return float(np.abs(back - video[0]).mean())

    assert error(scale=2) < 0.6 * error(scale=1)


def test_a_single_frame_is_an_exact_still():
    frame = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), dtype=np.uint8)
    image = decoded(figures.animation(frame, fps=8, scale=1))
    assert np.array_equal(np.asarray(image), frame[0])


def test_bad_videos_and_rates_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        figures.animation(np.zeros((2, 4, 4, 3)), fps=8)
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        figures.animation(np.zeros((2, 4, 4, 3), np.uint8), fps=0)


def test_side_by_side_keeps_order_and_shape():
    left, right = np.full((2, 3, 4, 3), 10, np.uint8), np.full((2, 3, 4, 3), 20, np.uint8)
    both = figures.side_by_side([left, right], gap=1)
    assert both.shape == (2, 3, 9, 3)
    assert both[0, 0, :, 0].tolist() == [10] * 4 + [128] + [20] * 4
    assert np.array_equal(figures.side_by_side([left]), left)
    with pytest.raises(ValueError, match="one shape"):
        figures.side_by_side([left, right[:1]])


def test_a_repeated_step_counts_once_with_its_later_value():
    records = [
        {"step": 2, "loss": 5.0},
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 3.0},
        {"step": 3, "loss": float("nan")},
    ]
    steps, values = figures.series(records, "loss")
    assert steps.tolist() == [1, 2] and values.tolist() == [4.0, 3.0]


def test_running_mean_by_hand():
    assert figures.running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert figures.running_mean(np.array([1.0, 3.0]), 1).tolist() == [1, 3]


def svg_text(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def test_curves_are_the_same_bytes_every_time_and_name_what_they_show():
    steps, values = np.arange(100.0), np.linspace(1, 0.9, 100)
    assert figures.curve_svg(steps, values, "loss") == figures.curve_svg(steps, values, "loss")
    text = svg_text(figures.curve_svg(steps, values, "loss"))
    assert ">loss<" in text and ">step<" in text
    assert text != svg_text(figures.curve_svg(steps, values[::-1], "loss"))
    with pytest.raises(ValueError, match="no finite values of 'loss'"):
        figures.curve_svg(np.array([]), np.array([]), "loss")


def test_a_wide_positive_range_is_drawn_logarithmically():
    steps = np.arange(10.0)
    wide = np.geomspace(1, 1000, 10)
    assert figures.curve_svg(steps, wide, "x") == figures.curve_svg(steps, wide, "x", log_scale=True)
    assert figures.curve_svg(steps, wide, "x") != figures.curve_svg(steps, wide, "x", log_scale=False)
    with_zero = wide - 1
    assert figures.curve_svg(steps, with_zero, "x") == figures.curve_svg(steps, with_zero, "x", log_scale=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00025, "2.5e-4"), (-3e-5, "-3e-5"), (0.001, "0.001"), (12.345, "12.3"), (1e6, "1e+06")],
)
def test_numbers_beside_a_curve_are_short(value, text):
    assert figures.short(value) == text


def test_a_curve_that_stands_still_has_ticks_that_differ():
    svg = base64.b64decode(figures.curve_svg(np.arange(50.0), np.full(50, 1e-4), "rate").partition(",")[2]).decode()
    labels = re.findall(r"<text [^>]*>([^<]+)</text>", svg)
    ticks = [label for label in labels if "e-" in label or label == "0"]
    assert "1e-4" in ticks and len(ticks) > 2 and len(ticks) - len(set(ticks)) <= 1  # one 0 for each axis
