"""Videos of every kind give the clips that are asked for, and what is wrong with one is said."""

import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from walt.data import media
from walt.data.records import Manifest, RecordWriter, new_dataset, write_manifest
from walt.evaluation import EvaluationError, footage
from walt.evaluation.footage import checked_frames, of_arrays, open_footage


def counting(frames: int, side: int = 16) -> np.ndarray:
    """A video that shows in grey which frame is which, 8 apart."""
    return np.repeat(np.arange(frames, dtype=np.uint8) * 8, side * side * 3).reshape(frames, side, side, 3)


def shown(clip: np.ndarray) -> list[int]:
    return np.rint(clip.mean(axis=(1, 2, 3)) / 8).astype(int).tolist()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    media.write_video(folder / "b.mp4", counting(20), 8.0)
    media.write_video(folder / "a.gif", counting(18), 8.0)
    np.savez(folder / "c.npz", video=counting(12))
    np.savez(folder / "d.npz", videos=np.stack([counting(10), counting(10)]), labels=np.arange(2))
    np.save(folder / "e.npy", counting(9).astype(np.float32) / 255)
    (folder / "frames" / "one").mkdir(parents=True)
    for number, frame in enumerate(counting(11)):
        Image.fromarray(frame).save(folder / "frames" / "one" / f"{number:03d}.png")
    (folder / "readme.txt").write_text("not a video")
    return folder


def test_a_folder_holds_videos_of_every_kind_in_order(folder):
    footage = open_footage(folder)
    assert [video.name for video in footage.videos] == [
        "a.gif",
        "b.mp4",
        "c.npz",
        "d.npz[0]",
        "d.npz[1]",
        "e.npy",
        "frames/one",
    ]
    lengths = (18, 20, 12, 10, 10, 9, 11)
    for video, length in zip(footage.videos, lengths):
        assert shown(video.clip(None, 1, lambda places: 0)) == list(range(length))
        clip = video.clip(9, 1, lambda places: places - 1)
        assert shown(clip) == list(range(length - 9, length))
        assert clip.shape == (9, 16, 16, 3)


def test_some_are_the_first_or_a_random_choice():
    footage = of_arrays(
        np.arange(50, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 9, 2, 2, 3), np.uint8), "x"
    )
    rows = lambda some: [int(video.clip(None, 1, lambda places: 0)[0, 0, 0, 0]) for video in some.videos]  # noqa: E731
    assert rows(footage.some(3, None)) == [0, 1, 2]
    chosen = rows(footage.some(10, 0))
    assert chosen == sorted(set(chosen)) and max(chosen) > 30 and len(chosen) == 10
    assert rows(footage.some(10, 0)) == chosen != rows(footage.some(10, 1))
    assert footage.some(50, 0) is footage and footage.some(None, 0) is footage
    prints = {
        footage.some(count, seed).fingerprint() for count, seed in ((10, 0), (10, 1), (10, None), (9, 0), (50, 0))
    }
    assert len(prints) == 5


def test_frames_are_in_the_order_of_their_numbers_and_pictures_beside_videos_are_none(tmp_path):
    (tmp_path / "one").mkdir()
    for number, frame in enumerate(counting(12)):
        Image.fromarray(frame).save(tmp_path / "one" / f"frame{number}.png")
    media.write_video(tmp_path / "two.gif", counting(9), 8.0)
    Image.fromarray(counting(1)[0]).save(tmp_path / "sheet.png")
    one, two = open_footage(tmp_path).videos
    assert (one.name, two.name) == ("one", "two.gif")
    assert shown(one.clip(None, 1, lambda places: 0)) == list(range(12))


def test_strides_skip_frames(folder):
    video = open_footage(folder).videos[1]
    assert shown(video.clip(9, 2, lambda places: places - 1)) == list(range(3, 20, 2))
    with pytest.raises(EvaluationError, match=r"b\.mp4 has 20 frames, and 25 are needed"):
        video.clip(9, 3, lambda places: 0)


def test_short_videos_are_named(tmp_path):
    for suffix in (".npy", ".gif"):
        path = tmp_path / f"short{suffix}"
        np.save(path, counting(8)) if suffix == ".npy" else media.write_video(path, counting(8), 8.0)
    for video in open_footage(tmp_path).videos:
        for frames, needed in ((16, 16), (None, 9)):
            with pytest.raises(EvaluationError, match=rf"{video.name} has 8 frames, and {needed} are needed"):
                video.clip(frames, 1, lambda places: 0)


def test_fingerprints_are_of_contents_alone(folder, tmp_path):
    found = open_footage(folder).fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert open_footage(tmp_path / "copy").fingerprint() == found
    (tmp_path / "copy" / "a.gif").rename(tmp_path / "copy" / "aa.gif")
    assert open_footage(tmp_path / "copy").fingerprint() == found
    np.savez(tmp_path / "copy" / "c.npz", video=counting(12) + 1)
    assert open_footage(tmp_path / "copy").fingerprint() != found
    videos = np.zeros((2, 9, 4, 4, 3), np.uint8)
    assert of_arrays(videos, "x").fingerprint() == of_arrays(list(videos), "y").fingerprint()
    assert of_arrays(videos, "x").fingerprint() != of_arrays(videos + 1, "x").fingerprint()


def test_fingerprints_are_of_how_frames_make_videos_and_of_the_order_of_these(tmp_path):
    for name, lengths in (("even", (16, 16)), ("uneven", (12, 20))):
        files = iter(counting(32))
        for folder, length in zip("ab", lengths):
            (tmp_path / name / folder).mkdir(parents=True)
            for number in range(length):
                Image.fromarray(next(files)).save(tmp_path / name / folder / f"{number:02d}.png")
    assert open_footage(tmp_path / "even").fingerprint() != open_footage(tmp_path / "uneven").fingerprint()
    # As paths, a/x comes before a-b; as names, a-b before a/x, and that is the order of the videos.
    for name, places in (("one", ("a/x.npy", "a-b.npy")), ("other", ("c.npy", "b.npy"))):
        for shift, place in enumerate(places):
            (tmp_path / name / place).parent.mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / name / place, counting(9) + shift)
    one, other = open_footage(tmp_path / "one"), open_footage(tmp_path / "other")
    clips = [[video.clip(None, 1, lambda places: 0).max() for video in footage.videos] for footage in (one, other)]
    assert clips[0] == clips[1] and one.fingerprint() == other.fingerprint()


def test_prepared_sets_are_read_by_split(tmp_path):
    with new_dataset(tmp_path / "set") as folder:
        splits = {}
        for name, count in (("train", 3), ("heldout", 2)):
            with RecordWriter(folder, name) as writer:
                for row in range(count):
                    writer.write({"id": str(row), "clip": media.encode_clip(counting(12) + row)})
                splits[name] = writer.close()
        write_manifest(folder, Manifest("test", splits, {"clip": (12, 16, 16, 3)}, 8.0, 0, {}, {}))
    heldout, train = open_footage(tmp_path / "set"), open_footage(tmp_path / "set", "train")
    assert (len(heldout), len(train)) == (2, 3) and heldout.fingerprint() != train.fingerprint()
    assert np.array_equal(train.videos[2].clip(9, 1, lambda places: 1), counting(12)[1:10] + 2)


def test_floats_must_lie_between_0_and_1():
    video = np.random.default_rng(0).random((9, 4, 4, 3))
    assert np.allclose(checked_frames(video, "x"), video * 255) and checked_frames(video, "x").dtype == np.float32
    for frames, message in (
        (
            video * 2 - 1,
            r"x holds floats from -0\.9\d+ to 0\.9\d+, which must lie in \[0, 1\]: videos in \[-1, 1\] are \(video \+ 1\) / 2",
        ),
        (video * 255, r"x holds floats from .* to 25\d.*, which must lie in \[0, 1\]$"),
        (video * np.nan, "x holds floats from nan to nan"),
        (video.astype(np.int32), r"x must be uint8 of 0 to 255, or float in \[0, 1\], got int32"),
        (video[..., :1], r"x must be a video \[frames, height, width, 3\], got \[9, 4, 4, 1\]"),
    ):
        with pytest.raises(EvaluationError, match=message):
            checked_frames(frames, "x")


def test_what_holds_no_videos_is_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"there is no folder of videos at .*nowhere"):
        open_footage(tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match=r"holds no videos \(\.mp4, .*\.npz, \.npy or folders of pictures\)"):
        open_footage(tmp_path)
    with pytest.raises(EvaluationError, match="there are no real videos"):
        of_arrays([], "real")
    with pytest.raises(
        EvaluationError, match=r"real videos must be \[videos, frames, height, width, 3\], got \[9, 4, 4, 3\]"
    ):
        of_arrays(np.zeros((9, 4, 4, 3), np.uint8), "real")


def npy(shape, kind="|u1", data=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def test_headers_that_announce_more_than_there_is_are_refused(tmp_path, monkeypatch):
    def told(name):
        (video,) = open_footage(tmp_path).videos
        (tmp_path / name).unlink()
        with pytest.raises(media.MediaError, match="^" + re.escape(name) + " cannot be read as arrays: ") as error:
            video.clip(9, 1, lambda places: 0)
        return str(error.value)

    many = (300_000, 16, 64, 64, 3)
    (tmp_path / "a.npy").write_bytes(npy(many))
    assert told("a.npy").endswith("[300000, 16, 64, 64, 3] of uint8, 58,982,400,000 bytes, and it holds 0")
    for shape, kind in (((300_000, 0, 4, 4, 3), "|u1"), ((300_000, 9, 4, 4, 3), "|V0")):
        (tmp_path / "a.npy").write_bytes(npy(shape, kind))
        assert "0 bytes, and it holds 0" in told("a.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("video.npy", npy(many))
    assert "and it holds 0" in told("b.npz")
    monkeypatch.setattr(footage, "MOST_VIDEOS", 3)
    np.save(tmp_path / "a.npy", np.zeros((4, 9, 2, 2, 3), np.uint8))
    assert told("a.npy").endswith("it holds 4 videos, more than the 3 allowed")
    monkeypatch.setattr(media, "LIMITS", media.Limits(decoded_megabytes=1))
    large = np.zeros((2, 9, 200, 200, 3), np.uint8)  # 1.03 MB each
    np.savez_compressed(tmp_path / "b.npz", video=large)
    assert told("b.npz").endswith("it has 2.06 decoded megabytes, more than the 1 allowed.")
    np.save(tmp_path / "a.npy", large[:, :8])  # 0.9 MB each, and they are read one by one
    assert len(open_footage(tmp_path).videos) == 2


def test_unreadable_files_say_so_when_they_are_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no film")
    (tmp_path / "b.npz").write_bytes(b"no arrays")
    np.savez(tmp_path / "c.npz", one=counting(9), two=counting(9))
    np.save(tmp_path / "d.npy", np.array([{}], dtype=object), allow_pickle=True)
    for video, message in zip(
        open_footage(tmp_path).videos,
        (
            r"a\.mp4 cannot be read",
            r"b\.npz cannot be read as arrays",
            r"c\.npz .*must hold one array, or one named",
            r"d\.npy cannot be read as arrays",
        ),
    ):
        with pytest.raises((media.MediaError, EvaluationError), match=message):
            video.clip(9, 1, lambda places: 0)
