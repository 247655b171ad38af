import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from walt.config import ConfigError
from walt.data import media, records
from walt.data.recipes import video_folder
from walt.data.recipes.video_folder import VideoFolderConfig


def film(path: Path, frames: int = 30, fps: float = 10, height: int = 24, width: int = 40) -> None:
    """A video whose brightness is 8 times the number of the frame."""
    video = (
        np.zeros((frames, height, width, 3), np.uint8) + (8 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    )
    media.write_video(path, video, fps)


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    """Two videos, a gif and a picture, with sidecar captions."""
    folder = tmp_path / "footage"
    film(folder / "a.mp4")
    film(folder / "animals/b.webm")
    film(folder / "c.gif")
    Image.fromarray(np.full((50, 30, 3), 77, np.uint8)).save(folder / "d.png")
    for name in ("a", "animals/b", "c", "d"):
        (folder / f"{name}.txt").write_text(f"first caption of {name}\n\n second caption of {name} \n")
    (folder / "notes.doc").write_text("ignored")
    return folder


def config(footage: Path, **changes: object) -> VideoFolderConfig:
    options = {"height": 16, "width": 16, "num_frames": 5, "fps": 5.0, "heldout": 0.25, **changes}
    return VideoFolderConfig(input=str(footage), output=str(footage.parent / "out"), **options)


def rows(directory: Path) -> dict[str, dict]:
    found = {}
    for split, part in records.read_manifest(directory).splits.items():
        assert part.count
        source = records.RecordSource(directory, split)
        found |= {source[i]["id"]: source[i] | {"split": split} for i in range(len(source))}
    return found


def test_every_kind_of_file(footage: Path) -> None:
    manifest = video_folder.prepare(config(footage))
    found = rows(footage.parent / "out")
    assert sorted(found) == ["a.mp4#0", "animals/b.webm#0", "c.gif#0", "d.png#0"]
    assert manifest.splits["train"].count == 3 and manifest.splits["heldout"].count == 1
    assert found["a.mp4#0"]["captions"] == ["first caption of a", "second caption of a"]
    assert found["animals/b.webm#0"]["label"] == "animals"
    for name in ("a.mp4#0", "animals/b.webm#0", "c.gif#0"):
        clip = media.decode_clip(found[name]["clip"])
        assert clip.shape == (5, 16, 16, 3)
        brightness = clip.mean(axis=(1, 2, 3))
        np.testing.assert_allclose(np.diff(brightness), 16, atol=4)  # 10 fps sampled at 5: every second frame
    still = media.decode_clip(found["d.png#0"]["clip"])
    np.testing.assert_array_equal(still, np.full((5, 16, 16, 3), 77))


def test_several_clips_spread_over_a_video(footage: Path) -> None:
    video_folder.prepare(config(footage, clips_per_video=3, heldout=0.0))
    found = rows(footage.parent / "out")
    starts = [media.decode_clip(found[f"a.mp4#{k}"]["clip"])[0].mean() for k in range(3)]
    assert starts[0] < starts[1] < starts[2]


def test_faster_than_the_source_repeats_frames(footage: Path) -> None:
    video_folder.prepare(config(footage, fps=20.0, heldout=0.0))
    brightness = media.decode_clip(rows(footage.parent / "out")["a.mp4#0"]["clip"]).mean(axis=(1, 2, 3))
    assert brightness[-1] - brightness[0] == pytest.approx(16, abs=5)


def test_the_same_again(footage: Path, capsys: pytest.CaptureFixture) -> None:
    video_folder.prepare(config(footage))
    assert re.search(r"wrote \S+out: \d+ train and \d+ heldout records, clip 5x16x16x3, 5 fps", capsys.readouterr().out)
    first = rows(footage.parent / "out")
    video_folder.prepare(config(footage))
    assert "already holds" in capsys.readouterr().out
    with pytest.raises(records.DatasetError, match=r"other arguments \(fps 5\.0 -> 4\.0\)"):
        video_folder.prepare(config(footage, fps=4.0))
    film(footage / "e.mp4")
    (footage / "e.txt").write_text("one more")
    with pytest.raises(records.DatasetError, match=r"other arguments \(captions_sha256 .*media_sha256"):
        video_folder.prepare(config(footage))
    for name in ("e.mp4", "e.txt"):
        (footage / name).unlink()
    (footage.parent / "out").rename(footage.parent / "old")
    video_folder.prepare(config(footage))
    assert rows(footage.parent / "out") == first


def test_edited_captions_and_media_are_noticed(footage: Path, capsys: pytest.CaptureFixture) -> None:
    video_folder.prepare(config(footage))
    captions, picture = (footage / "a.txt").read_text(), (footage / "d.png").read_bytes()
    (footage / "a.txt").write_text("an edited caption")
    with pytest.raises(records.DatasetError, match=r"other arguments \(captions_sha256 '\w+' -> '\w+'\)"):
        video_folder.prepare(config(footage))
    (footage / "a.txt").unlink()
    with pytest.raises(media.MediaError, match=r"a\.mp4 has no caption"):
        video_folder.prepare(config(footage))
    (footage / "a.txt").write_text(captions)
    (footage / "d.png").write_bytes(picture[:-1] + b"x")  # of the same size
    with pytest.raises(records.DatasetError, match=r"other arguments \(media_sha256 '\w+' -> '\w+'\)"):
        video_folder.prepare(config(footage))
    (footage / "d.png").write_bytes(picture)
    capsys.readouterr()
    shutil.copytree(footage, footage.parent / "copy", copy_function=shutil.copyfile)  # with times of its own
    shutil.rmtree(footage)
    (footage.parent / "copy").rename(footage)
    video_folder.prepare(config(footage))
    assert "already holds" in capsys.readouterr().out


def test_the_fingerprint_of_a_large_file_sees_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    path.write_bytes(bytes(200_000))
    original = video_folder._fingerprint(path)
    for position in (0, 65_535, 199_999):
        path.write_bytes(bytes(position) + b"x" + bytes(199_999 - position))
        assert video_folder._fingerprint(path) != original
    path.write_bytes(bytes(200_001))
    assert video_folder._fingerprint(path) != original


@pytest.mark.parametrize("kind", ["csv", "jsonl", "flag"])
def test_captions_from_one_table(footage: Path, kind: str) -> None:
    entries = [(n, f"table caption of {n}") for n in ("a.mp4", "animals/b.webm", "c.gif", "d.png")]
    entries.append(("a.mp4", 'another, with "quotes"'))
    if kind == "jsonl":
        lines = [json.dumps({"file": file, "caption": caption}) for file, caption in entries]
        (footage / "captions.jsonl").write_text("\n".join(lines))
    else:
        name = "captions.csv" if kind == "csv" else "mine.csv"
        lines = ["file,caption", *(f'{file},"{caption.replace(chr(34), 2 * chr(34))}"' for file, caption in entries)]
        (footage / name).write_text("\n".join(lines))
    video_folder.prepare(config(footage, captions=str(footage / "mine.csv") if kind == "flag" else ""))
    captions = rows(footage.parent / "out")["a.mp4#0"]["captions"]
    assert captions == ["table caption of a.mp4", 'another, with "quotes"']


def damage(footage: Path, name: str) -> None:
    match name:
        case "no caption":
            (footage / "c.txt").unlink()
        case "empty caption":
            (footage / "c.txt").write_text("\n \n")
        case "unreadable":
            (footage / "c.gif").write_bytes(b"nonsense")
        case "empty file":
            (footage / "c.gif").write_bytes(b"")
        case "too short":
            film(footage / "c.gif", frames=3)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no caption", r"c\.gif has no caption; it is looked for in .*c\.txt"),
        ("empty caption", r"c\.gif has no caption"),
        ("unreadable", r"c\.gif cannot be read as a video"),
        ("empty file", r"c\.gif cannot be read as a video"),
        ("too short", r"c\.gif lasts 0\.20 s \(3 frames\), too short for 5 frames at 5 fps; --fps=[\d.]+ would do"),
    ],
)
def test_bad_files_stop_or_are_skipped(footage: Path, name: str, problem: str, capsys: pytest.CaptureFixture) -> None:
    damage(footage, name)
    with pytest.raises(media.MediaError, match=problem):
        video_folder.prepare(config(footage))
    assert not (footage.parent / "out").exists()
    manifest = video_folder.prepare(config(footage, skip_bad=True))
    assert "skipped: " in capsys.readouterr().out and "c.gif" in manifest.extra["skipped"][0]
    assert sorted(rows(footage.parent / "out")) == ["a.mp4#0", "animals/b.webm#0", "d.png#0"]


def test_a_split_without_a_good_file_is_left_out(footage: Path, capsys: pytest.CaptureFixture) -> None:
    heldout = video_folder.prepare(config(footage)).splits["heldout"]
    (name,) = {
        row["id"].partition("#")[0] for row in rows(footage.parent / "out").values() if row["split"] == "heldout"
    }
    assert heldout.count == 1
    shutil.rmtree(footage.parent / "out")
    (footage / name).write_bytes(b"nonsense")
    manifest = video_folder.prepare(config(footage, skip_bad=True))
    assert list(manifest.splits) == ["train"] and len(manifest.extra["skipped"]) == 1
    assert "no split 'heldout': all 1 files chosen for it are bad" in capsys.readouterr().out
    assert not list((footage.parent / "out").glob("heldout*"))


def test_a_file_nobody_may_read_is_skipped(footage: Path) -> None:
    """A folder with the name of a video is as unreadable, also for the superuser."""
    (footage / "e.mp4").mkdir()
    (footage / "e.txt").write_text("a folder")
    with pytest.raises(media.MediaError, match=r"There is no file .*e\.mp4"):
        video_folder.prepare(config(footage))
    manifest = video_folder.prepare(config(footage, skip_bad=True))
    assert len(manifest.extra["skipped"]) == 1


def test_sizes_are_warned_of(footage: Path, capsys: pytest.CaptureFixture) -> None:
    video_folder.prepare(config(footage, num_frames=4))
    assert "nearest: --num_frames=5 (not 4)." in capsys.readouterr().out


def test_bad_folders_and_tables(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(media.MediaError, match="empty holds no video or image file"):
        video_folder.prepare(config(tmp_path / "empty"))
    with pytest.raises(media.MediaError, match=r"There is no folder .*nowhere"):
        video_folder.prepare(config(tmp_path / "nowhere"))
    with pytest.raises(media.MediaError, match="There is no captions file"):
        video_folder.prepare(config(footage, captions="none.csv"))
    with pytest.raises(ConfigError, match="fps must be positive"):
        config(footage, fps=0.0)
    with pytest.raises(ConfigError, match=r"heldout must lie in \[0, 1\)"):
        config(footage, heldout=1.0)
    (footage / "captions.csv").write_text("name,text\na.mp4,x\n")
    with pytest.raises(media.MediaError, match=r"Entry 1 of .*captions\.csv must have a `file` and a `caption`"):
        video_folder.prepare(config(footage))
    (footage / "captions.csv").write_text("file,caption\na.mp4,x\n")
    with pytest.raises(media.MediaError, match=r"webm has no caption; it is looked for in .*captions\.csv"):
        video_folder.prepare(config(footage))
    table = "".join(f"{file},x\n" for file in ("a.mp4", "animals/b.webm", "c.gif", "d.png"))
    (footage / "captions.csv").write_text(f"file,caption\nA.mp4,misspelt\n{table}")
    video_folder.prepare(config(footage))
    assert "captions for 1 files that are not there, such as A.mp4" in capsys.readouterr().out
    shutil.rmtree(footage.parent / "out")
    with pytest.raises(media.MediaError, match="Nothing to train on"):
        damage(footage, "unreadable")
        (footage / "captions.csv").write_text("file,caption\nc.gif,x\n")
        video_folder.prepare(config(footage, skip_bad=True, heldout=0.0))
