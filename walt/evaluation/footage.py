"""Videos as an evaluation reads them: many, of any kind, one at a time, and known by their contents.

    a folder         mp4, webm, gif, mov, mkv and avi files, npz and npy files, and folders of frames (png, jpg, ...), in all subfolders;
                     an npz or npy file holds one video [T, H, W, 3] or several [N, T, H, W, 3]
    a prepared set   ArrayRecord shards, as `walt prepare` makes them
    arrays           [N, T, H, W, 3] in memory

Whole numbers are uint8; fractions must lie in [0, 1].
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from walt.data import caption_files, media
from walt.data.latents import described as described_record
from walt.data.records import MANIFEST, RecordSource, file_sha256, read_manifest
from walt.evaluation.clips import EvaluationError
from walt.evaluation.environment import available_cores
from walt.evaluation.i3d import FEWEST_FRAMES

ARRAY_SUFFIXES = (".npz", ".npy")
MOST_VIDEOS = 2**18
"""Of one array file: however small they are, each is an object here."""
MOST_UNPACKED = 1032
"""Bytes that zip's compression can make of one."""
Choose = Callable[[int], int]
"""The first frame of a clip, given how many first frames there are to choose from."""


@dataclass(frozen=True)
class Video:
    """One video. `read(span, choose)` gives that many frames in a row, all of them for `None` or where there are fewer; `describe()` its
    caption and its label, "" where it has none; `change`, if there is one, is made to every clip of 0 to 255."""

    name: str
    read: Callable[[int | None, Choose], np.ndarray]
    describe: Callable[[], tuple[str, str]] = lambda: ("", "")
    change: Callable[[np.ndarray], np.ndarray] | None = None

    def clip(self, frames: int | None, stride: int, choose: Choose, fewest: int = FEWEST_FRAMES) -> np.ndarray:
        """uint8, or float32 of 0 to 255 [frames, h, w, 3]; for `None` all frames of the video, which must have `fewest`.

        Raises `MediaError` or `EvaluationError` for a video that cannot be read or is too short.
        """
        span = None if frames is None else (frames - 1) * stride + 1
        found = self.read(span, choose)
        needed = fewest if span is None else span
        if len(found) < needed:
            raise EvaluationError(f"{self.name} has {len(found)} frames, and {needed} are needed")
        clip = checked_frames(found[::stride], self.name)
        return clip if self.change is None else self.change(clip)


@dataclass(frozen=True)
class Footage:
    """Videos in a fixed order. `fingerprint` is a checksum of the contents of all of them, taken when asked for."""

    description: str
    videos: Sequence[Video]
    fingerprint: Callable[[], str]

    def __len__(self) -> int:
        return len(self.videos)

    def some(self, count: int | None, seed: int | None) -> Footage:
        """`count` of them, in their order: the first for no seed, else a random choice. All of them if there are no more."""
        if count is None or count >= len(self):
            return self
        chosen = range(count) if seed is None else np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        return self.rows(chosen, f"{count} by seed {seed}")

    def rows(self, rows: Sequence[int] | np.ndarray, which: str | None = None) -> Footage:
        """These rows, in this order; `which` says so in the checksum, by default all of them."""
        which = ",".join(map(str, rows)) if which is None else which
        return Footage(self.description, [self.videos[row] for row in rows], lambda: f"{self.fingerprint()}, {which}")


def checked_frames(frames: np.ndarray, name: str) -> np.ndarray:
    """Frames of 0 to 255: uint8 as they are, fractions of [0, 1] as float32. Raises `EvaluationError` for anything else."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise EvaluationError(f"{name} must be a video [frames, height, width, 3], got {list(frames.shape)}")
    if frames.dtype == np.uint8:
        return frames
    if not np.issubdtype(frames.dtype, np.floating):
        raise EvaluationError(f"{name} must be uint8 of 0 to 255, or float in [0, 1], got {frames.dtype}")
    low, high = float(frames.min()), float(frames.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        hint = ": videos in [-1, 1] are (video + 1) / 2 there" if low >= -1.01 and high <= 1.01 else ""
        raise EvaluationError(f"{name} holds floats from {low:.4g} to {high:.4g}, which must lie in [0, 1]{hint}")
    return np.clip(frames, 0, 1).astype(np.float32) * 255


def of_arrays(videos: Any, name: str) -> Footage:
    """From an array [N, T, H, W, 3] or a sequence of videos [T, H, W, 3]. Raises `EvaluationError` for none, or another shape."""
    if isinstance(videos, np.ndarray) and videos.ndim != 5:
        raise EvaluationError(f"{name} videos must be [videos, frames, height, width, 3], got {list(videos.shape)}")
    if not len(videos):
        raise EvaluationError(f"there are no {name} videos")

    def fingerprint() -> str:
        digest = hashlib.sha256()
        for video in videos:
            array = np.ascontiguousarray(video)
            digest.update(f"{array.shape} {array.dtype}\n".encode() + array.tobytes())
        return digest.hexdigest()

    def read(row: int) -> np.ndarray:
        return np.asarray(videos[row])

    items = [Video(f"{name} video {row}", _from_memory(partial(read, row))) for row in range(len(videos))]
    return Footage(f"{len(items)} arrays", items, fingerprint)


def open_footage(path: str | os.PathLike[str], split: str | None = None, stills: bool = False) -> Footage:
    """The videos of a folder or prepared set; of the latter `split`, or else "generated", "heldout" or the first there is. With `stills`, every
    picture in a folder is a video of one frame.

    Raises `EvaluationError` for a folder that is missing or holds no videos, `DatasetError` for a damaged prepared set.
    """
    path = Path(path)
    if not path.is_dir():
        raise EvaluationError(f"there is no folder of videos at {path}")
    if (path / MANIFEST).is_file():
        return _prepared(path, split)
    files: list[Path] = []
    videos: list[tuple[str, Video, _Contents]] = []
    described = _Captions(path)
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path).as_posix()
        if file.name.startswith(".") or not file.is_file():
            continue
        if file.suffix.lower() in media.VIDEO_SUFFIXES:
            files.append(file)
            video = Video(relative, _from_video_file(file), partial(described, file))
            videos.append((relative, video, _Contents([file])))
        elif file.suffix.lower() in ARRAY_SUFFIXES:
            files.append(file)
            videos += [
                (relative, replace(video, describe=partial(described, file)), _Contents([file], row))
                for row, video in enumerate(_in_array_file(file, relative))
            ]
    beside_videos = {file.parent for file in files}  # where pictures are about the videos
    pictured = {file.parent for file in path.rglob("*") if file.suffix.lower() in media.IMAGE_SUFFIXES}
    for folder in sorted(pictured - beside_videos):
        pictures = sorted(
            (file for file in folder.iterdir() if file.suffix.lower() in media.IMAGE_SUFFIXES), key=_by_number
        )
        relative = folder.relative_to(path).as_posix()
        if stills:
            for file in pictures:
                name = file.relative_to(path).as_posix()
                video = Video(name, _from_pictures([file]), partial(described, file))
                videos.append((name, video, _Contents([file])))
            continue
        video = Video(relative, _from_pictures(pictures), partial(described, folder))
        videos.append((relative, video, _Contents(pictures)))
    if not videos:
        raise EvaluationError(
            f"{path} holds no videos ({', '.join((*media.VIDEO_SUFFIXES, *ARRAY_SUFFIXES))} or folders of pictures) and is no prepared data set"
        )
    videos.sort(key=lambda entry: entry[0])
    contents = [inside for _, _, inside in videos]
    return Footage(str(path), [video for _, video, _ in videos], lambda: _checksum(contents))


@dataclass(frozen=True)
class _Contents:
    """What a video of a folder is made of: files in the order of its frames, and which video it is of a file that may hold several."""

    files: Sequence[Path]
    row: int = 0


class _Captions:
    """Caption and label of the videos in a folder: as its table says, or the first line of a .txt beside the file and the name of its subfolder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def _table(self) -> dict[str, list[caption_files.Caption]]:
        table = caption_files.find_table(self.folder)
        return {} if table is None else caption_files.read_table(table)

    def __call__(self, file: Path) -> tuple[str, str]:
        relative = file.relative_to(self.folder)
        subfolder = relative.parts[0] if len(relative.parts) > 1 else ""
        if row := self._table.get(relative.as_posix()):
            return row[0].text, row[0].label or subfolder
        beside = file.with_suffix(".txt")
        lines = caption_files.read_lines(beside) if beside.is_file() else []
        return (lines[0] if lines else ""), subfolder


def _by_number(file: Path) -> list[tuple[int, str]]:
    """Sorts frame 2 before frame 10, with or without zeros before the number."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", file.name)]


def _checksum(videos: Sequence[_Contents]) -> str:
    """Of the contents of all videos in their order, and not of the names of their files: copies have the same."""
    files = list(dict.fromkeys(file for video in videos for file in video.files))
    with ThreadPoolExecutor(available_cores()) as pool:
        checksums = dict(zip(files, pool.map(file_sha256, files)))
    told = [[video.row, *(checksums[file] for file in video.files)] for video in videos]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _from_memory(get: Callable[[], np.ndarray]) -> Callable[[int | None, Choose], np.ndarray]:
    """Reads a clip of a video that is held, or read, as a whole."""

    def read(span: int | None, choose: Choose) -> np.ndarray:
        video = get()
        if span is None or len(video) < span:
            return video
        start = choose(len(video) - span + 1)
        return video[start : start + span]

    return read


def _from_video_file(file: Path) -> Callable[[int | None, Choose], np.ndarray]:
    def read(span: int | None, choose: Choose) -> np.ndarray:
        if span is None:
            return media.read_video(file)[0]
        places = max(len(media.frame_times(file)) - span + 1, 1)
        start = choose(places)
        frames = [frame for _, frame in islice(media.iterate_frames(file), start, start + span)]
        if len({frame.shape for frame in frames}) > 1:
            raise media.MediaError(f"{file} changes its frame size on the way.")
        return np.stack(frames) if frames else np.empty((0, 1, 1, 3), np.uint8)

    return read


def _from_pictures(files: Sequence[Path]) -> Callable[[int | None, Choose], np.ndarray]:
    def read(span: int | None, choose: Choose) -> np.ndarray:
        start = 0 if span is None or len(files) < span else choose(len(files) - span + 1)
        frames = [media.read_image(file) for file in files[start : None if span is None else start + span]]
        if len({frame.shape for frame in frames}) > 1:
            raise media.MediaError(f"{files[0].parent} holds pictures of different sizes.")
        return np.stack(frames)

    return read


def _in_array_file(file: Path, name: str) -> Iterator[Video]:
    """The videos in an npz or npy file, of which only the header is read yet. A file without is one video that cannot be read."""
    try:
        shape = _array_shape(file)
    except Exception as error:  # zip, numpy and the system raise plain and differing types
        message = f"{name} cannot be read as arrays: {error}"
        yield Video(name, _failing(message))
        return
    if len(shape) == 5:
        for row in range(shape[0]):
            yield Video(f"{name}[{row}]", _from_memory(partial(_read_array, file, row)))
    else:
        yield Video(name, _from_memory(partial(_read_array, file)))


def _failing(message: str) -> Callable[[int | None, Choose], np.ndarray]:
    def read(span: int | None, choose: Choose) -> np.ndarray:
        raise media.MediaError(message)

    return read


def _array_shape(file: Path) -> tuple[int, ...]:
    """What the header says, if the file can hold it, and memory what is read at once: a video of `.npy`, all of `.npz`."""
    with contextlib.ExitStack() as stack:
        stream: Any = stack.enter_context(file.open("rb"))
        size, packed = file.stat().st_size, file.suffix.lower() == ".npz"
        if packed:
            archive = stack.enter_context(zipfile.ZipFile(stream))
            member = archive.getinfo(_only_member(archive.namelist()))
            size = min(member.file_size, MOST_UNPACKED * size)
            stream = stack.enter_context(archive.open(member))
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        held = size - stream.tell()
    announced, videos = math.prod(shape) * dtype.itemsize, shape[0] if len(shape) == 5 else 1
    if not 0 < announced <= held:
        raise ValueError(f"its header announces {list(shape)} of {dtype}, {announced:,} bytes, and it holds {held:,}")
    if videos > MOST_VIDEOS:
        raise ValueError(f"it holds {videos:,} videos, more than the {MOST_VIDEOS:,} allowed")
    media.LIMITS.check("it", decoded_megabytes=(announced if packed else announced / videos) / 2**20)
    return shape


def _only_member(names: Sequence[str]) -> str:
    found = [name for name in names if name.endswith(".npy")]
    preferred = [name for name in found if name in ("video.npy", "videos.npy")] or found
    if len(preferred) != 1:
        raise ValueError(f"it must hold one array, or one named `video` or `videos`, and holds {len(found)}")
    return preferred[0]


_ONE_AT_A_TIME = threading.Lock()


def _read_array(file: Path, row: int | None = None) -> np.ndarray:
    """Without pickles; of `.npy` only what is used leaves the disk. With `row`, that video of several."""
    try:
        if file.suffix.lower() == ".npy":
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        elif row is None:
            array = _load(file)
        else:  # the videos of a file are read one after another, and the file once
            with _ONE_AT_A_TIME:
                array = _load_once(file, file.stat().st_mtime_ns)
    except Exception as error:  # zip, numpy and the system raise plain and differing types
        raise media.MediaError(f"{file} cannot be read as arrays: {error}") from error
    return array if row is None else array[row]


def _load(file: Path) -> np.ndarray:
    with np.load(file, allow_pickle=False) as arrays:
        return arrays[_only_member([f"{name}.npy" for name in arrays.files]).removesuffix(".npy")]


@lru_cache(maxsize=1)
def _load_once(file: Path, _modified: int) -> np.ndarray:
    return _load(file)


def _prepared(path: Path, split: str | None) -> Footage:
    manifest = read_manifest(path)
    splits = manifest.splits
    chosen = split or next((name for name in ("generated", "heldout") if name in splits), next(iter(splits)))
    source = RecordSource(path, chosen)

    def read(row: int) -> np.ndarray:
        record = source[row]
        if "clip" not in record:
            raise EvaluationError(f"{path} holds {manifest.name!r} records without clips; name a data set of videos")
        return media.decode_clip(record["clip"])

    def describe(row: int) -> tuple[str, str]:
        captions, label = described_record({"captions": [], **source[row]})
        return (captions[0] if captions else ""), label

    videos = [
        Video(f"{chosen} record {row}", _from_memory(partial(read, row)), partial(describe, row))
        for row in range(len(source))
    ]
    checksums = "\n".join(shard.sha256 for shard in splits[chosen].shards)
    return Footage(f"{path} ({chosen})", videos, lambda: hashlib.sha256(checksums.encode()).hexdigest())
