import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.evaluation.clips import Clips
from walt.evaluation.nearest import nearest_clips


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 90), st.integers(1, 40))
def test_equals_brute_force_for_any_chunks(seed, count, chunk):
    random = np.random.default_rng(seed)
    training = Clips(random.integers(0, 256, (count, 2, 3, 3, 3), dtype=np.uint8), tuple(str(i) for i in range(count)))
    queries = Clips(random.integers(0, 256, (3, 2, 3, 3, 3), dtype=np.uint8), ("q",) * 3)
    found = nearest_clips(queries, training.chunks(chunk))
    squared = ((queries.videos[:, None].astype(int) - training.videos[None].astype(int)) ** 2).mean(axis=(2, 3, 4, 5))
    assert found.clips.labels == tuple(str(i) for i in squared.argmin(axis=1))
    np.testing.assert_allclose(found.distances, np.sqrt(squared.min(axis=1)) / 255, rtol=1e-12)
    assert np.array_equal(found.clips.videos, training.videos[squared.argmin(axis=1)])


def test_a_copy_is_found_at_distance_exactly_zero(footage):
    training = footage(30, side=40)
    found = nearest_clips(training.take([17, 101]), training.chunks(50))
    assert found.distances.tolist() == [0.0, 0.0]
    assert found.clips.ids == (training.ids[17], training.ids[101])
    assert found.clips.prompts == (training.prompts[17], training.prompts[101])
    assert found.mean_distance == 0.0


def test_one_level_in_one_value_is_told_from_a_copy():
    base = np.random.default_rng(0).integers(0, 255, (17, 64, 64, 3), dtype=np.uint8)
    almost = base.copy()
    almost[3, 5, 7, 1] += 1
    training = Clips(np.stack([almost, base]), ("almost", "base"))
    found = nearest_clips(Clips(base[None], ("q",)), [training])
    assert found.clips.labels == ("base",) and found.distances[0] == 0.0


@pytest.mark.parametrize("level", [0, 90, 128, 254])
def test_rounding_of_the_search_never_hides_the_nearest_clip(level):
    # Long clips that differ from the query by a handful of levels: their squared distances agree to 1e-8 of the squared lengths.
    random = np.random.default_rng(level)
    base = np.full((17, 64, 64, 3), level, np.uint8)
    videos = np.stack([base] * 70)
    for row in range(70):
        places = random.choice(base.size, size=int(random.integers(3, 200)), replace=False)
        videos[row].reshape(-1)[places] += 1
    truth = (videos != level).sum(axis=(1, 2, 3, 4))
    found = nearest_clips(Clips(base[None], ("q",)), Clips(videos, tuple(str(i) for i in range(70))).chunks(30))
    assert found.clips.labels == (str(truth.argmin()),)
    assert found.distances[0] == pytest.approx(np.sqrt(truth.min() / base.size) / 255, rel=1e-12)


@pytest.mark.parametrize("level", [1, 30, 233, 255])
def test_a_nearer_clip_in_a_later_piece_always_takes_over(level):
    # Each piece differs from the query in one value fewer than the one before, by one level: rounding is larger than the gain.
    base = np.full((17, 64, 64, 3), level, np.uint8)
    queries = Clips(
        np.stack([base] * 3), ("q",) * 3
    )  # several queries and clips, for a matrix product and not a dot product
    videos = np.stack([base] * 60)
    for row in range(60):
        videos[row].reshape(-1)[: 20 - row // 3] -= 1
    found = nearest_clips(queries, Clips(videos, tuple(str(row // 3) for row in range(60))).chunks(3))
    assert found.clips.labels == ("19",) * 3


def test_the_earliest_of_equal_clips_wins(footage):
    clip = footage(1).take([0])
    copies = Clips(np.repeat(clip.videos, 5, axis=0), tuple("abcde"))
    assert nearest_clips(clip, copies.chunks(2)).clips.labels == ("a",)


def test_nothing_to_search_and_unlike_clips_are_refused(footage):
    with pytest.raises(ValueError, match="no training clips"):
        nearest_clips(footage(1), [])
    with pytest.raises(ValueError, match=r"training clips are \[6, 16, 16, 3\]"):
        nearest_clips(footage(1), [footage(1, frames=6)])
