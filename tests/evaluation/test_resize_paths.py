"""Ways of resizing against stored outputs of the originals and against their formulas in loops.

`data/resize.npz` was written once with torch 2.13.0 and `cd-fvd` 0.1.1: "half-pixel" and "antialiased" are `interpolate(mode="bilinear",
align_corners=False)` without and with `antialias=True`; "cd-fvd" is `cdfvd.utils.data_utils.preprocess` times 255 as bytes, which is what
that package hands to its network; "preprocess_i3d" is what the network then sees, every ninth row and column of it.
TensorFlow 1 runs nowhere any more: `tf1_in_loops` is its kernel (`resize_bilinear_op.cc`, legacy scaler) written down a second time.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from walt.evaluation.protocols import CD_FVD, MAGVIT_K600
from walt.evaluation.resize import RULES, Resize

STORED = np.load(Path(__file__).parent / "data" / "resize.npz")
SIZES = ("20x28", "37x24", "40x53", "16x30")


def tf1_in_loops(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = frame.shape[:2]
    out = np.empty((height, width, 3), np.float32)
    for i in range(height):
        y = np.float32(i) * np.float32(rows / height)
        top, bottom = int(y), min(int(y) + 1, rows - 1)
        for j in range(width):
            x = np.float32(j) * np.float32(columns / width)
            left, right = int(x), min(int(x) + 1, columns - 1)
            a, b, c, d = (frame[r, s].astype(np.float32) for r in (top, bottom) for s in (left, right))
            above, below = a + (b - a) * (x - left), c + (d - c) * (x - left)
            out[i, j] = above + (below - above) * (y - top)
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", ["half-pixel", "antialiased"])
def test_are_those_of_pytorch(rule, size):
    frames = STORED[f"input {size}"]
    for target in (24, 32):
        resize, expected = Resize(target, rule), STORED[f"{rule} {target} {size}"]
        assert np.abs(resize.on_host(frames) - expected).max() < 2e-3  # of 255; torch computes places in float32
        assert np.abs(resize.on_device(frames.astype(np.float32)) - resize.on_host(frames)).max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_are_those_of_tensorflow_1(size):
    frames = STORED[f"input {size}"]
    for target in (24, 32):
        expected = np.stack([tf1_in_loops(frame, target, target) for frame in frames])
        assert np.abs(Resize(target, "tf1").on_host(frames) - expected).max() < 1e-3
        assert np.abs(jax.jit(Resize(target, "tf1").on_device)(frames.astype(np.float32)) - expected).max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [16, 24])
def test_crops_and_bytes_are_those_of_cd_fvd(size, target):
    ours = np.floor(Resize(target, "antialiased", crop=True).on_host(STORED[f"input {size}"])).astype(int)
    theirs = STORED[f"cd-fvd {target} {size}"].astype(int)
    # Values that are whole in theory fall to either side of it in float32; of 16 pixels made 24 many are.
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() <= 1 and (ours != theirs).mean() < 0.04


def test_what_the_network_of_cd_fvd_sees():
    (resize,) = CD_FVD.resizes
    ours = resize.on_host(STORED["preprocess_i3d input"]) / 127.5 - 1
    assert np.abs(ours[:, ::9, ::9] - STORED["preprocess_i3d"]).max() < 2e-5


def test_k600_goes_by_way_of_64():
    frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.float32)
    small = tf1_in_loops(frame, 64, 64)
    assert np.array_equal(small, frame[::2, ::2])  # the legacy rule takes every second pixel, no mean
    expected = tf1_in_loops(small, 224, 224)
    found = frame
    for resize in MAGVIT_K600.resizes:
        found = resize.on_host(found)
    assert np.abs(found - expected).max() < 3e-3  # of 255; the kernel computes places in float32


@pytest.mark.parametrize("rule", RULES)
def test_keep_what_needs_no_change(rule):
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    assert np.array_equal(Resize(9, rule).on_host(frames), frames)
    for size, target in ((7, 20), (20, 7), (9, 9)):
        assert np.allclose(RULES[rule](size, target).sum(1), 1)
        assert np.abs(RULES[rule](9, 9) - np.eye(9)).max() < 1e-12
