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
    assert cut.shape == (2, np.prod(windows.counts), windows.tokens, 4)
    np.testing.assert_array_equal(windows.merge(cut), x)


@pytest.mark.parametrize("grid, window", GRIDS)
def test_every_window_holds_the_tokens_of_its_box(grid, window):
    windows = Windows(grid, window)
    token = np.arange(1, np.prod(grid) + 1, dtype=np.float32).reshape(1, *grid, 1)  # 0 is padding
    cut = np.asarray(windows.split(token))[0, ..., 0]
    size = windows.window
    boxes = itertools.product(*(range(0, side, step) for side, step in zip(grid, size)))
    for slots, corner in zip(cut, boxes, strict=True):
        box = token[0, ..., 0][tuple(slice(start, start + step) for start, step in zip(corner, size))]
        assert set(slots[slots > 0]) == set(box.ravel())
    mask = windows.token_mask()
    np.testing.assert_array_equal(cut > 0, np.ones_like(cut, bool) if mask is None else mask)


def test_windows_of_one_frame_are_ordered_by_frame():
    cut = Windows((3, 4, 4), (1, 2, 4)).split(np.arange(3.0).repeat(16).reshape(1, 3, 4, 4, 1))
    np.testing.assert_array_equal(np.asarray(cut)[0, :, 0, 0], [0, 0, 1, 1, 2, 2])


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
