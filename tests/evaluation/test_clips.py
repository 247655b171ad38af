import numpy as np
import pytest

from walt.evaluation.clips import Clips, check_labels_known, check_same_shape, evenly_spaced

VIDEOS = np.zeros((2, 3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (VIDEOS.astype(np.float32), "uint8 .*float32"),
        (VIDEOS[0], r"\[N, T, H, W, 3\].*\[3, 4, 4, 3\]"),
        (VIDEOS[..., :1], r"\[2, 3, 4, 4, 1\]"),
        (VIDEOS[:0], "no empty axis"),
        ([1, 2], "numpy array"),
    ],
)
def test_bad_videos_are_named(videos, words):
    with pytest.raises(ValueError, match=words):
        Clips(videos, ("a", "b"))


def test_counts_must_match():
    with pytest.raises(ValueError, match="2 clips need as many labels, got 1"):
        Clips(VIDEOS, ("a",))
    with pytest.raises(ValueError, match="as many labels, got 0"):
        Clips(VIDEOS, ())
    with pytest.raises(ValueError, match="as many prompts, got 1"):
        Clips(VIDEOS, ("a", "b"), ("p",))
    assert Clips(VIDEOS, ("a", "b")).ids == ()


def test_take_and_chunks_keep_everything_together(footage):
    clips = footage(3)
    picked = clips.take([7, 0])
    assert picked.labels == (clips.labels[7], clips.labels[0])
    assert picked.prompts == (clips.prompts[7], clips.prompts[0]) and picked.ids == (clips.ids[7], clips.ids[0])
    assert np.array_equal(picked.videos, clips.videos[[7, 0]])
    pieces = list(clips.chunks(5))
    assert [len(piece) for piece in pieces] == [5, 5, 2]
    assert np.array_equal(np.concatenate([piece.videos for piece in pieces]), clips.videos)
    assert sum((piece.ids for piece in pieces), ()) == clips.ids


def test_unlike_sets_are_refused(footage):
    with pytest.raises(ValueError, match=r"generated clips are \[5, 16, 16, 3\] but real clips are \[6, 16, 16, 3\]"):
        check_same_shape("generated", footage(1), "real", footage(1, frames=6))
    with pytest.raises(
        ValueError, match=r"generated clips have the label 'blue', which the real clips lack \(they have: amber\)"
    ):
        check_labels_known("generated", footage(1), "the real clips", ("amber",))


@pytest.mark.parametrize(("count", "limit"), [(10, 3), (3, 10), (1000, 7), (5, 5)])
def test_evenly_spaced_indices_are_distinct_and_cover_the_range(count, limit):
    rows = evenly_spaced(count, limit)
    assert len(set(rows.tolist())) == min(count, limit)
    assert rows[0] == 0 and rows[-1] < count
    assert count - rows[-1] <= -(-count // min(count, limit))
