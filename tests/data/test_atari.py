import subprocess
from pathlib import Path

import numpy as np
import pytest

from walt.config import ConfigError
from walt.data import media, records
from walt.data.recipes import atari, atari_captions

pytest.importorskip("ale_py", reason="the atari recipe needs the extra `demo`")

SMALL = {"games": ("boxing", "freeway"), "clips": 4, "heldout": 2, "num_frames": 5}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("atari") / "data"
    atari.prepare(atari.AtariConfig(output=str(output), **SMALL))
    return output


def rows(directory: Path, split: str) -> dict[str, dict]:
    source = records.RecordSource(directory, split)
    return {row["id"]: row for row in (source[i] for i in range(len(source)))}


def test_footage_is_what_the_manifest_says(small: Path) -> None:
    manifest = records.verify(small)
    assert {name: split.count for name, split in manifest.splits.items()} == {"train": 4, "heldout": 2}
    assert (manifest.shapes["clip"], manifest.fps, manifest.seed) == ((5, 64, 64, 3), 15.0, 0)
    assert {"ale-py", "numpy", "pillow"} <= manifest.versions.keys()
    for row in rows(small, "train").values():
        video = media.decode_clip(row["clip"])
        assert video.shape == (5, 64, 64, 3)
        assert len(row["captions"]) >= 4 and len(set(row["captions"])) == len(row["captions"])
        assert all(atari_captions.title(row["label"]) in caption for caption in row["captions"])
        assert (np.abs(np.diff(video.astype(int), axis=0)).max(axis=(1, 2, 3)) >= 24).mean() >= 0.75
    assert [row["label"] for row in rows(small, "train").values()].count("boxing") == 2


def test_no_held_out_clip_is_a_training_clip(small: Path) -> None:
    seen = {row["clip"] for row in rows(small, "train").values()}
    held = {row["clip"] for row in rows(small, "heldout").values()}
    assert len(seen) == 4 and len(held) == 2 and not seen & held


def test_the_same_request_gives_the_same_clips(small: Path, tmp_path: Path) -> None:
    """Whatever the number of workers; another seed gives others."""
    again = atari.AtariConfig(output=str(tmp_path / "again"), workers=1, **SMALL)
    atari.prepare(again)
    for split in ("train", "heldout"):
        assert rows(small, split) == rows(tmp_path / "again", split)
    other = {**SMALL, "games": ("boxing",), "clips": 1, "heldout": 1, "seed": 1}
    atari.prepare(atari.AtariConfig(output=str(tmp_path / "other"), **other))
    (clip,) = (row["clip"] for row in rows(tmp_path / "other", "train").values())
    assert clip not in {row["clip"] for row in rows(small, "train").values()}


def test_a_finished_folder_is_left_alone(small: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.iterdir()}
    atari.prepare(atari.AtariConfig(output=str(small), workers=7, **SMALL))
    assert "already holds this data set" in capsys.readouterr().out
    with pytest.raises(records.DatasetError, match=r"prepared with other arguments \(clips 4 -> 8\)"):
        atari.prepare(atari.AtariConfig(output=str(small), **{**SMALL, "clips": 8}))
    assert before == {path: path.stat().st_mtime_ns for path in small.iterdir()}


def test_a_broken_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.arrayrecord").write_bytes(b"half")
    with pytest.raises(records.DatasetError, match="no prepared data set"):
        atari.prepare(atari.AtariConfig(output=str(tmp_path), **SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["train-00000-of-00002.arrayrecord"]


def test_an_emulator_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ROMs are checked against a list of checksums; a folder with a bad one stands in for any fatal game."""
    (tmp_path / "boxing.bin").write_bytes(b"no game")
    (tmp_path / "freeway.bin").write_bytes(b"no game")
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(records.DatasetError, match=r"Recording '(boxing|freeway)' failed \(exit code 1\): .*hash"):
        atari.prepare(atari.AtariConfig(output=str(tmp_path / "out"), **SMALL))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_an_emulator_killed_by_a_signal_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def crash(command: list[str], **options: object) -> subprocess.Popen:
        return real(["/bin/sh", "-c", "echo clip; kill -SEGV $$"], **options)

    monkeypatch.setattr(atari.subprocess, "Popen", crash)
    with pytest.raises(records.DatasetError, match=r"Recording '\w+' failed \(exit code -11\): no message"):
        atari.prepare(atari.AtariConfig(output=str(tmp_path / "out"), **SMALL))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"games": ()}, "games must be a list"),
        ({"games": ("pong", "pong")}, "games must be a list of one or more different games"),
        ({"clips": 1}, r"clips must be at least 1 per game \(2\), got 1"),
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_arguments(changes: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        atari.AtariConfig(**{"output": "x", **SMALL, **changes})


def test_unknown_game(tmp_path: Path) -> None:
    with pytest.raises(records.DatasetError, match="There is no game 'freewya'; did you mean 'freeway'"):
        atari.prepare(atari.AtariConfig(output=str(tmp_path / "out"), **{**SMALL, "games": ("freewya", "pong")}))


def test_captions_name_game_and_action() -> None:
    assert "a game of Freeway, the chicken moves up" in atari_captions.captions("freeway", "UP")
    assert atari_captions.title("space_invaders") == "Space Invaders"
    for action in atari_captions.ACTIONS:
        assert len(set(atari_captions.captions("demon_attack", action))) == 6
