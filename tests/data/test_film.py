import io
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from walt import prepare
from walt.config import ConfigError
from walt.data import media, records
from walt.data.recipes import film
from walt.data.recipes.film import FilmConfig

LENGTHS = (30, 24, 7, 45, 26, 31, 24, 40, 28, 33)  # the third shot is too short for a clip
FIRST = np.cumsum([0, *LENGTHS])[:-1].tolist()
COLOURS = np.array([(r, g, b) for r in (50, 190) for g in (60, 200) for b in (40, 120, 210)])[
    [0, 11, 2, 9, 4, 7, 1, 10, 3, 8]
]


@pytest.fixture(scope="module")
def bunny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the film: shots of one colour each, with stripes that move, and hard cuts between them."""
    path = tmp_path_factory.mktemp("film") / "bbb.mp4"
    stripes = np.sin(np.arange(80) / 4)
    shots = []
    for length, colour in zip(LENGTHS, COLOURS, strict=True):
        moving = np.stack([10 * np.roll(stripes, t) for t in range(length)])
        shots.append(np.repeat(moving[:, None, :, None], 48, axis=1) + colour)
    media.write_video(path, np.concatenate(shots).astype(np.uint8), 24)
    return path


@pytest.fixture(autouse=True)
def _stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.node.name:
        monkeypatch.setattr(film, "FILM_SHA256", records.file_sha256(request.getfixturevalue("bunny")))


def config(bunny: Path, output: Path, **changes: object) -> FilmConfig:
    options = {"side": 24, "height": 16, "width": 16, "num_frames": 5, "crops": 2, "heldout": 0.25, "min_shot": 8}
    return FilmConfig(output=str(output), **({"film": str(bunny)} | options | changes))


def rows(directory: Path) -> dict[str, dict]:
    found = {}
    for split in records.read_manifest(directory).splits:
        source = records.RecordSource(directory, split)
        found |= {source[i]["id"]: source[i] | {"split": split} for i in range(len(source))}
    return found


def numbers(name: str) -> tuple[int, int, int]:
    """(shot, first frame, crop) of a record's id."""
    shot, first, crop = re.fullmatch(r"shot-(\d+)/frame-(\d+)#(\d+)", name).groups()
    return int(shot), int(first), int(crop)


def test_shots_end_where_the_cuts_are(bunny: Path) -> None:
    shots = list(film._shots(bunny, 24, 24.0))
    assert [shot.first for shot in shots] == FIRST and [len(shot.frames) for shot in shots] == list(LENGTHS)
    assert [shot.index for shot in shots] == list(range(len(LENGTHS)))
    for shot, colour in zip(shots, COLOURS, strict=True):
        assert {frame.shape for frame in shot.frames} == {(24, 40, 3)}
        np.testing.assert_allclose(np.mean(shot.frames, axis=(1, 2)), np.tile(colour, (len(shot.frames), 1)), atol=9)


def test_clips_lie_within_shots_and_shots_within_splits(bunny: Path, tmp_path: Path) -> None:
    manifest = film.prepare(config(bunny, tmp_path / "out"))
    found = rows(tmp_path / "out")
    assert len(found) == sum(split.count for split in manifest.splits.values())
    splits: dict[int, set[str]] = {}
    for name, row in found.items():
        shot, first, crop = numbers(name)
        clip = media.decode_clip(row["clip"])
        assert clip.shape == (5, 16, 16, 3) and crop in (0, 1) and row["fps"] == 24.0
        assert row["captions"] == [film.CAPTION]
        assert FIRST[shot] <= first and first + 5 <= FIRST[shot] + LENGTHS[shot]
        np.testing.assert_allclose(clip.mean(axis=(1, 2)), np.tile(COLOURS[shot], (5, 1)), atol=16)  # every frame
        splits.setdefault(shot, set()).add(row["split"])
    assert all(len(split) == 1 for split in splits.values()) and 2 not in splits
    assert {"train", "heldout"} == set.union(*splits.values())
    firsts = sorted({numbers(name)[1] for name in found})
    assert min(np.diff(firsts)) >= 5  # no frame in two clips
    listed = {
        split: [int(text.partition(":")[0]) for text in names] for split, names in manifest.extra["shots"].items()
    }
    assert listed["left_out"] == [2]
    assert {shot: {split} for split in ("train", "heldout") for shot in listed[split]} == splits
    assert "Blender Foundation" in manifest.extra["attribution"] and "CC-BY 3.0" in manifest.extra["attribution"]
    assert "scenedetect-headless" in manifest.versions or "scenedetect" in manifest.versions


def test_crops_are_parts_of_the_scaled_film(bunny: Path, tmp_path: Path) -> None:
    film.prepare(config(bunny, tmp_path / "out", crops=3))
    shots = list(film._shots(bunny, 24, 24.0))
    places = set()
    for name, row in rows(tmp_path / "out").items():
        index, first, _ = numbers(name)
        clip = media.decode_clip(row["clip"])
        frames = np.stack(shots[index].frames[first - FIRST[index] :][:5])
        matches = [
            (top, left)
            for top in range(9)
            for left in range(25)
            if np.array_equal(frames[:, top : top + 16, left : left + 16], clip)
        ]
        assert matches, name
        places.add(matches[0])
    assert len(places) > 10


def test_the_same_again(bunny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    film.prepare(config(bunny, tmp_path / "one"))
    film.prepare(config(bunny, tmp_path / "two"))
    film.prepare(config(bunny, tmp_path / "three", seed=1))
    one, two, three = (rows(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys() and any(one[name]["clip"] != three[name]["clip"] for name in one)
    capsys.readouterr()
    film.prepare(config(Path("not looked at"), tmp_path / "one"))
    assert "already holds this data set" in capsys.readouterr().out
    with pytest.raises(records.DatasetError, match=r"other arguments \(crops 2 -> 3\)"):
        film.prepare(config(bunny, tmp_path / "one", crops=3))
    (tmp_path / "one" / records.MANIFEST).unlink()
    with pytest.raises(records.DatasetError, match="no prepared data set"):
        film.prepare(config(bunny, tmp_path / "one"))


def test_every_size_holds_out_the_same_shots(bunny: Path, tmp_path: Path) -> None:
    small = film.prepare(config(bunny, tmp_path / "small"))
    large = film.prepare(config(bunny, tmp_path / "large", side=48, height=48, width=48, crops=1, stride=3))
    assert small.extra["shots"] == large.extra["shots"]
    assert large.shapes["clip"] == (5, 48, 48, 3)


def test_the_held_out_share() -> None:
    for share in (0.03, 0.1, 0.25, 0.5):
        held = film._heldout_shots(14_315, share, seed=0)
        assert len([shot for shot in held if shot < 400]) == pytest.approx(400 * share, abs=1)
        assert held != film._heldout_shots(14_315, share, seed=1)
    assert not film._heldout_shots(100, 0.0, seed=0)


@pytest.mark.parametrize(
    ("length", "changes", "expected"),
    [
        (20, {}, [0, 5, 10, 15]),
        (23, {}, [1, 6, 11, 16]),
        (12, {"stride": 3}, [0, 3, 6]),
        (13, {"stride": 3}, [1, 4, 7]),
        (30, {"clips_per_shot": 2}, [5, 20]),
        (30, {"clips_per_shot": 1}, [15]),
        (30, {"min_shot": 31}, []),
        (4, {"min_shot": 0}, []),
    ],
)
def test_where_clips_start(length: int, changes: dict, expected: list[int]) -> None:
    shot = film.Shot(index=0, first=100, frames=[np.zeros((1, 1, 3), np.uint8)] * length)
    assert film._starts(shot, 5, config(Path("x"), Path("y"), **changes)).tolist() == expected


def test_credits_are_left_out(bunny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "_CREDITS", (FIRST[7] + 1, FIRST[9]))  # found by the middle of a shot, not to the frame
    manifest = film.prepare(config(bunny, tmp_path / "out", crops=1))
    assert [int(name.partition(":")[0]) for name in manifest.extra["shots"]["left_out"]] == [2, 7, 8]
    manifest = film.prepare(config(bunny, tmp_path / "all", crops=1, credits=True))
    assert [int(name.partition(":")[0]) for name in manifest.extra["shots"]["left_out"]] == [2]


def test_fewer_frames_per_second(bunny: Path, tmp_path: Path) -> None:
    manifest = film.prepare(config(bunny, tmp_path / "out", fps=12.0, width=40, height=24, crops=1))
    assert manifest.fps == 12.0
    shots = list(film._shots(bunny, 24, 24.0))
    for name, row in rows(tmp_path / "out").items():
        index, first, _ = numbers(name)
        frames = shots[index].frames[first - FIRST[index] :: 2][:5]
        np.testing.assert_array_equal(media.decode_clip(row["clip"]), np.stack(frames))


def test_without_held_out_shots(bunny: Path, tmp_path: Path) -> None:
    assert list(film.prepare(config(bunny, tmp_path / "out", heldout=0.0)).splits) == ["train"]
    assert not list((tmp_path / "out").glob("heldout*"))


def test_bad_requests(bunny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(problem: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=problem):
            film.prepare(config(bunny, tmp_path / "out", **changes))
        assert not list(tmp_path.iterdir())

    fail("height must be at most side .24., got 25", height=25)
    fail("stride must not be negative, got -1", stride=-1)
    fail("crops must be positive, got 0", crops=0)
    fail(r"heldout must lie in \[0, 1\)", heldout=1.0)
    fail("fps must be at most the film's 24, got 30", fps=30.0)
    fail("The film is 40x24 at a side of 24, too small for crops of 48x16", width=48)
    fail("Split 'train' would be empty: of 10 shots, 10 are left out", num_frames=49)
    fail("There is no file nowhere.mp4", film="nowhere.mp4")
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    fail(r"needs PySceneDetect .*pip install walt\[film\]")


def test_another_film_is_refused(bunny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(bunny.read_bytes() + b"x")
    with pytest.raises(media.MediaError, match=rf"other\.mp4 is not the film that is wanted.* not {film.FILM_SHA256}"):
        film.prepare(config(other, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# ---- the download


def sdist(path: Path, content: bytes, archive: str = film._ARCHIVE, member: str = film._MEMBER) -> None:
    """A source distribution with a zip file with the film in it, like that of moviepy."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as target:
        target.writestr("moviepy_10_minutes/trailer.py", "")
        target.writestr(f"moviepy_10_minutes/{member}", content)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"setup.py": b"", archive: zipped.getvalue()}.items():
            entry = tarfile.TarInfo(f"moviepy-2.2.1/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def offer(monkeypatch: pytest.MonkeyPatch, make: object, error: str = "") -> list[list[str]]:
    """Puts a stand-in for pip in place, which calls `make` with the path to write; returns the commands it gets."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> types.SimpleNamespace:
        commands.append(command)
        if not error:
            make(Path(command[command.index("--dest") + 1]) / "moviepy-2.2.1.tar.gz")
        return types.SimpleNamespace(returncode=int(bool(error)), stderr=error)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_film_is_downloaded_once(bunny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = offer(monkeypatch, lambda path: sdist(path, bunny.read_bytes()))
    options = {"film": "", "cache": str(tmp_path / "cache")}
    film.prepare(config(bunny, tmp_path / "one", **options))
    film.prepare(config(bunny, tmp_path / "two", **options))
    assert len(commands) == 1 and commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["bbb.mp4"]
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    (tmp_path / "cache/bbb.mp4").write_bytes(b"damaged")
    film.prepare(config(bunny, tmp_path / "three", **options))
    assert len(commands) == 2 and (tmp_path / "cache/bbb.mp4").read_bytes() == bunny.read_bytes()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: sdist(path, b"another"), r"resources/bbb\.mp4 in moviepy-2\.2\.1\.tar\.gz is not the film"),
        (lambda path: sdist(path, b"", member="x"), r"moviepy_10_minutes\.zip in .* does not contain resources/bbb"),
        (lambda path: sdist(path, b"", archive="x"), r"moviepy-2\.2\.1\.tar\.gz does not contain docs/_static"),
        (lambda path: path.write_bytes(b"nonsense"), r"moviepy-2\.2\.1\.tar\.gz cannot be unpacked"),
        (lambda path: None, r"pip could not download moviepy==2\.2\.1 \(no reason given\)"),
    ],
)
def test_a_bad_download(
    bunny: Path, tmp_path: Path, make: object, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, make)
    with pytest.raises(ValueError, match=problem):
        film.prepare(config(bunny, tmp_path / "out", film="", cache=str(tmp_path / "cache")))
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").iterdir())


def test_a_failed_download_says_what_to_do(bunny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, None, "WARNING: Retrying\nERROR: No matching distribution found for moviepy\n[notice] new pip\n")
    with pytest.raises(records.DatasetError, match=r"\(No matching distribution found for moviepy\); .* with --film\."):
        film.prepare(config(bunny, tmp_path / "out", film="", cache=str(tmp_path / "cache")))
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").iterdir())


@pytest.mark.slow
def test_the_real_film(tmp_path: Path) -> None:
    """Downloads 58 MB; skipped where pip reaches no index."""
    try:
        path = film._cached(tmp_path)
    except records.DatasetError as error:
        pytest.skip(str(error))
    assert len(media.frame_times(path)) == 14_315 and media.frame_rate(path) == 24.0
    assert next(media.iterate_frames(path))[1].shape == (720, 1280, 3)


def test_the_checksum_of_the_real_film() -> None:
    assert re.fullmatch("475fbbf3[0-9a-f]{56}", film.FILM_SHA256)


def test_config_errors_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="min_shot must not be negative"):
        FilmConfig(output="x", min_shot=-1)


def test_flags_become_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[FilmConfig] = []
    monkeypatch.setattr(film, "prepare", asked.append)
    prepare.main(["walt prepare", "film", "--output=x", "--film=y.mp4", "--fps=12", "--height=128", "--credits"])
    assert asked == [FilmConfig(output="x", film="y.mp4", fps=12.0, height=128, credits=True)]
