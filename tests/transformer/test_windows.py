import itertools

import jax
import numpy as np
import pytest

from walt.transformer.windows import RelativePositionBias, Windows

GRIDS = [
    ((1, 1, 1), (1, 1, 1)),
    ((3, 4, 4), (1, 2, 4)),
    ((5, 4, 6), (5, 2, 3)),
    ((2, 3, 2), (4, 4, 4)),
    ((5, 3, 7), (2, 2, 3)),
]


@pytest.mark.parametrize("grid, window", GRIDS)
def test_merge_undoes_split(grid, window):
    windows = Windows(grid, window)
    x = np.arange(2 * np.prod(grid) * 4, dtype=np.float32).reshape(2, *grid, 4)
    cut = windows.split(x)
    assert cut.shape == (2, *windows.apart.grid, 4)
    np.testing.assert_array_equal(windows.merge(cut), x)


@pytest.mark.parametrize("grid, window", [each for each in GRIDS if not any(Windows(*each).padding)])
def test_heads_of_windows_are_those_of_windows_apart(grid, window):
    windows = Windows(grid, window)
    x = np.arange(2 * np.prod(grid) * 6, dtype=np.float32).reshape(2, *grid, 6)
    by_head = np.asarray(windows.by_head(x, 3))
    apart = np.asarray(windows.split(x)).reshape(2, windows.number, windows.tokens, 3, 2)
    np.testing.assert_array_equal(by_head, apart.transpose(3, 0, 1, 2, 4))
    np.testing.assert_array_equal(windows.of_heads(by_head), x)


@pytest.mark.parametrize("grid, window", GRIDS)
def test_every_window_holds_the_tokens_of_its_box(grid, window):
    windows = Windows(grid, window)
    token = np.arange(1, np.prod(grid) + 1, dtype=np.float32).reshape(1, *grid, 1)  # 0 is padding
    cut = np.asarray(windows.split(token))[0, :, 0, :, 0]
    size = windows.window
    frames, rows, columns = (range(0, side, step) for side, step in zip(grid, size))
    boxes = [(frame, row, column) for row, frame, column in itertools.product(rows, frames, columns)]
    for slots, corner in zip(cut, boxes, strict=True):
        box = token[0, ..., 0][tuple(slice(start, start + step) for start, step in zip(corner, size))]
        assert set(slots[slots > 0]) == set(box.ravel())
    mask = windows.token_mask()
    np.testing.assert_array_equal(cut > 0, np.ones_like(cut, bool) if mask is None else mask)


@pytest.mark.parametrize("given", [1, 3])
def test_what_belongs_to_a_frame_reaches_its_windows(given):
    windows = Windows((3, 4, 4), (1, 2, 2))
    frame = np.arange(3.0).repeat(16).reshape(1, 3, 4, 4, 1)
    of_windows = np.asarray(windows.split(frame))[0, :, 0, 0, 0]
    np.testing.assert_array_equal(of_windows, [0, 0, 1, 1, 2, 2] * 2)  # a band of rows after the other
    spread = np.asarray(windows.of_frames(np.arange(given, dtype=np.float32).reshape(1, given)))[0]
    np.testing.assert_array_equal(spread, of_windows if given == 3 else np.zeros(12))


def test_tokens_stay_in_their_grid_where_whole_bands_of_windows_lie_on_each_device():
    assert Windows((3, 8, 16), (3, 2, 8)).lie_in_grid(4)
    assert not Windows((3, 8, 16), (3, 4, 8)).lie_in_grid(4)
    assert not Windows((3, 7, 16), (3, 4, 8)).lie_in_grid(1), "padded"
    assert not Windows((3, 8, 16), (3, 4, 4)).lie_in_grid(1), "half tiles"


def test_what_is_divided_over_devices():
    assert Windows((3, 4, 4), (1, 2, 4)).divided_over(2) == "windows"
    assert Windows((5, 4, 4), (1, 4, 4)).divided_over(4) == "queries"
    assert Windows((5, 3, 3), (1, 3, 3)).divided_over(2) is None


@pytest.mark.parametrize("used", [(3, 4, 2), (1, 2, 1)])
def test_relative_bias_depends_on_the_offset_of_key_from_query(used, randomised):
    made = (3, 4, 2)
    bias = randomised(lambda rngs: RelativePositionBias(made, 2, rngs))
    table = np.asarray(bias.table[...])
    places = list(itertools.product(*(range(side) for side in used)))
    expected = np.empty((2, len(places), len(places)), np.float32)
    for (q, query), (k, key) in itertools.product(enumerate(places), enumerate(places)):
        offset = [b - a + side - 1 for a, b, side in zip(query, key, made)]
        expected[:, q, k] = table[(slice(None), *offset)]
    np.testing.assert_array_equal(jax.jit(lambda bias: bias(used))(bias), expected)
