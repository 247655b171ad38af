import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from walt.data.order import VIDEO, Order, draw, permute, shuffled

seeds = st.integers(0, 2**32)


@given(st.integers(1, 3000), seeds)
def test_permute_is_a_permutation(count: int, seed: int) -> None:
    images = permute(np.arange(count), count, seed)
    np.testing.assert_array_equal(np.sort(images), np.arange(count))


@given(st.integers(1, 50), seeds, st.integers(0, 5))
def test_every_epoch_visits_every_example_once(count: int, seed: int, epoch: int) -> None:
    ids = shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed)
    np.testing.assert_array_equal(np.sort(ids), np.arange(count))


def test_positions_do_not_depend_on_their_company() -> None:
    positions = np.array([5, 1003, 77, 2999, 5])
    alone = [shuffled(np.array([p]), 500, 3)[0] for p in positions]
    np.testing.assert_array_equal(shuffled(positions, 500, 3), alone)


def test_the_shuffle_mixes() -> None:
    """No correlation of place and example, epochs differ, neighbours part, and seeds differ."""
    count = 4096
    first, second = shuffled(np.arange(2 * count), count, 0).reshape(2, count)
    other = shuffled(np.arange(count), count, 1)
    for a, b in [(np.arange(count), first), (first, second), (first, other), (first[:-1], first[1:])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert len(np.unique(np.diff(first))) > count // 4


def test_the_order_never_changes() -> None:
    """A run resumed with a later version of this package must go on with the same data."""
    assert shuffled(np.arange(12), 10, 0, VIDEO).tolist() == [6, 0, 7, 5, 3, 9, 1, 4, 2, 8, 6, 1]
    assert [draw(1000, 0, 3, step) for step in range(4)] == [739, 293, 53, 249]


@given(st.integers(1, 64), st.data())
def test_image_rows_are_fixed_and_evenly_spread(batch: int, data: st.DataObject) -> None:
    image_rows = data.draw(st.integers(0, batch))
    is_image = Order(0, batch, 10, image_rows, 10).is_image
    assert is_image.sum() == image_rows
    filled = np.concatenate([[0], np.cumsum(is_image)])
    assert np.abs(filled - np.arange(batch + 1) * image_rows / batch).max() < 1  # so do the rows of every process


@given(seeds, st.integers(0, 1000))
def test_example_ids(seed: int, step: int) -> None:
    order = Order(seed, batch_size=6, num_videos=40, image_rows=2, num_images=90, slots=3)
    ids = order.example_ids(step)
    np.testing.assert_array_equal(ids, order.example_ids(step))
    assert ids.shape == (6, 3)
    assert (ids[~order.is_image, 1:] == -1).all()
    assert ((0 <= ids[~order.is_image, 0]) & (ids[~order.is_image, 0] < 40)).all()
    assert ((0 <= ids[order.is_image]) & (ids[order.is_image] < 90)).all()


def test_both_streams_visit_everything_once_per_epoch() -> None:
    order = Order(5, batch_size=6, num_videos=40, image_rows=2, num_images=90, slots=3)
    steps = [order.example_ids(step) for step in range(30)]
    videos = np.concatenate([ids[~order.is_image, 0] for ids in steps])[:40]
    images = np.concatenate([ids[order.is_image].ravel() for ids in steps])[:90]
    np.testing.assert_array_equal(np.sort(videos), np.arange(40))
    np.testing.assert_array_equal(np.sort(images), np.arange(90))


def test_redraws_and_captions_vary_with_every_coordinate() -> None:
    order = Order(5, batch_size=6, num_videos=10**6, image_rows=3, num_images=10**6, slots=3)
    draws = {
        order.redraw(step, row, slot, attempt)
        for step in (0, 1)
        for row in (0, 1)
        for slot in (0, 1)
        for attempt in (1, 2)
    }
    assert len(draws) == 16
    counts = np.bincount([order.caption(step, 0, 0, 4) for step in range(2000)])
    assert counts.min() > 400


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_data_sets(count: int) -> None:
    assert set(shuffled(np.arange(60), count, 9).tolist()) == set(range(count))
