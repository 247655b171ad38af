"""Rounding sizes up and cropping back."""

import numpy as np
import pytest

from walt.generation.fit import VideoSize, fit, fit_size


@pytest.mark.parametrize(
    ("asked", "fitted"),
    [
        ((17, 64, 64), (17, 64, 64)),
        ((16, 64, 64), (17, 64, 64)),
        ((18, 65, 57), (21, 72, 64)),
        ((1, 1, 1), (1, 8, 8)),
        ((2, 8, 8), (5, 8, 8)),
    ],
)
def test_sizes(asked, fitted, capsys):
    assert fit_size(VideoSize(*asked)) == fitted
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (asked != fitted)
    if lines:
        assert str(VideoSize(*asked)) in lines[0] and str(VideoSize(*fitted)) in lines[0]


def test_other_factors():
    assert fit_size(VideoSize(4, 17, 16), time_factor=2, space_factor=16) == (5, 32, 16)


@pytest.mark.parametrize("shape", [(3, 6, 10, 13, 3), (6, 10, 13, 3)])
def test_pads_with_the_edge_and_crops_back(shape, capsys):
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    padded, crop = fit(video)
    assert padded.shape[-4:] == (9, 16, 16, 3) and padded.dtype == np.uint8
    np.testing.assert_array_equal(crop(padded), video)
    np.testing.assert_array_equal(padded[..., 8, :10, :13, :], video[..., 5, :, :, :])
    np.testing.assert_array_equal(padded[..., :6, 15, :13, :], video[..., :, 9, :, :])
    np.testing.assert_array_equal(padded[..., :6, :10, 15, :], video[..., :, :, 12, :])
    assert "rounded up" in capsys.readouterr().out
