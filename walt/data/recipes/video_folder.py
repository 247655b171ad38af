"""Recipe "video_folder": your own videos and images, with captions beside them.

    footage/cat.mp4      footage/cat.txt      one caption per line; or
    footage/captions.csv (or captions.jsonl)  with `file` and `caption`, several lines per file if it has several

Files are found in all subfolders. Frames are scaled to cover the wanted size and cropped to its centre. An image becomes
a clip that stands still, or a one-frame clip if num_frames is 1.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from walt.data import caption_files, media, records
from walt.data.recipes import common
from walt.data.recipes.common import option

_FINGERPRINT_BYTES = 2**16
_LIMITS = ("max_pixels", "max_frames", "max_seconds", "max_megabytes")


@dataclasses.dataclass(frozen=True)
class VideoFolderConfig:
    """Arguments of the recipe; every field is a flag of `walt prepare video_folder`."""

    output: str = option("Folder to write; must be absent, empty, or hold just this data set.")
    input: str = option("Folder of mp4, webm, gif, mov, mkv, avi and image files.")
    captions: str = option(
        "A csv or jsonl file with `file` and `caption`; default: captions.csv, captions.jsonl or .txt.", default=""
    )
    height: int = option("Height of a frame in pixels.", default=64)
    width: int = option("Width of a frame in pixels.", default=64)
    num_frames: int = option("Frames of a clip.", default=17)
    fps: float = option("Frames per second of the clips, whatever the files have.", default=8.0)
    clips_per_video: int = option("Clips taken from every video, spread over its length.", default=1)
    heldout: float = option("Share of the files that is held out.", default=0.1)
    seed: int = option("Seed of the choice of held-out files and of where clips start.", default=0)
    skip_bad: bool = option("Skip and list files that cannot be used instead of stopping.", default=False)
    max_pixels: int = option("Files with larger frames are bad.", default=media.LIMITS.pixels)
    max_frames: int = option("Videos with more frames are bad.", default=media.LIMITS.frames)
    max_seconds: float = option("Videos that last longer are bad.", default=media.LIMITS.seconds)
    max_megabytes: int = option("Larger files are bad.", default=media.LIMITS.megabytes)

    def __post_init__(self) -> None:
        common.check_positive(self, "height", "width", "num_frames", "fps", "clips_per_video")
        common.check_positive(self, *_LIMITS)
        common.check_heldout(self.heldout)

    @property
    def limits(self) -> media.Limits:
        """What a file may be at most."""
        return media.Limits(self.max_pixels, self.max_frames, self.max_seconds, self.max_megabytes)


def prepare(config: VideoFolderConfig) -> records.Manifest:
    """Makes clips of the files in `config.input` and returns the manifest.

    Raises:
      records.DatasetError: the output folder is not free.
      media.MediaError: the input folder is empty, or a file is unreadable, too short or without a caption; with
        `skip_bad` such files are listed instead.
    """
    files = _find_files(Path(config.input))
    captions = _Captions(config)
    request = dataclasses.asdict(config) | {"input": str(Path(config.input).resolve())}
    request |= _checksums(files, captions, config)
    captions.warn_of_missing(files)
    del request["output"]
    for field in dataclasses.fields(config):  # data sets that are older than the limits are still the same
        if field.name in _LIMITS and request[field.name] == field.default:
            del request[field.name]
    finished = records.already_prepared(config.output, "video_folder", request)
    if finished is not None:
        return finished
    common.warn_of_sizes(config)
    items = common.split_items(files, config.heldout, config.seed)
    with records.new_dataset(config.output) as directory:
        splits, skipped = common.write_clips(
            directory,
            items,
            lambda path: _clips(path, captions.of(path), config),
            clips_per_item=config.clips_per_video,
            skip_bad=config.skip_bad,
        )
        manifest = records.Manifest(
            name="video_folder",
            splits=splits,
            shapes={"clip": (config.num_frames, config.height, config.width, 3)},
            fps=config.fps,
            seed=config.seed,
            request=request,
            versions=records.package_versions("walt", "av", "numpy", "pillow", "array_record"),
            extra={"skipped": skipped},
        )
        records.write_manifest(directory, manifest)
    return records.read_manifest(config.output)


def _find_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise media.MediaError(f"There is no folder {folder}.")
    known = (*media.VIDEO_SUFFIXES, *media.IMAGE_SUFFIXES)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in known and not p.name.startswith("."))
    if not files:
        raise media.MediaError(f"{folder} holds no video or image file ({', '.join(known)}).")
    return files


def _checksums(files: list[Path], captions: "_Captions", config: VideoFolderConfig) -> dict[str, str]:
    """Checksums of the media files and of their captions, for the request; a copy of the folder has the same.

    Raises:
      media.MediaError: a file has no caption and `skip_bad` is off; so this shows before hours of decoding.
    """
    contents: dict[str, dict[str, Any]] = {"media": {}, "captions": {}}
    for path in files:
        name = path.relative_to(config.input).as_posix()
        with contextlib.suppress(OSError):  # an unreadable file is reported when its clips are made
            contents["media"][name] = _fingerprint(path)
        try:
            contents["captions"][name] = captions.of(path)
        except media.MediaError:
            if not config.skip_bad:
                raise
    return {
        f"{part}_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest() for part, content in contents.items()
    }


def _fingerprint(path: Path) -> list[int | str]:
    """Size and a checksum of both ends of a file: reading all of a large collection would take as long as decoding it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_FINGERPRINT_BYTES)
        file.seek(max(0, size - _FINGERPRINT_BYTES))
        ends += file.read(_FINGERPRINT_BYTES)
    return [size, hashlib.sha256(ends).hexdigest()]


def _clips(path: Path, captions: list[str], config: VideoFolderConfig) -> Iterator[dict[str, Any]]:
    name = path.relative_to(config.input)
    if path.suffix.lower() in media.IMAGE_SUFFIXES:
        frame = media.resize(media.read_image(path, config.limits), config.height, config.width)
        videos = [np.repeat(frame[None], config.num_frames, axis=0)]
    else:
        videos = _sample(path, config)
    for index, video in enumerate(videos):
        yield {
            "id": f"{name.as_posix()}#{index}",
            "clip": media.encode_clip(video),
            "captions": captions,
            "label": name.parts[0] if len(name.parts) > 1 else "",
            "fps": config.fps,
        }


def _sample(path: Path, config: VideoFolderConfig) -> list[np.ndarray]:
    """Clips of a video at `config.fps`, their starts drawn one from each equal part of its length."""
    times = media.frame_times(path, config.limits)
    length = (config.num_frames - 1) / config.fps
    room = times[-1] + 0.5 * (times[-1] / max(1, len(times) - 1)) - length  # a frame lasts until the next one
    if room < 0:
        enough = math.ceil(10 * config.fps * length / (room + length)) / 10
        raise media.MediaError(
            f"{path} lasts {times[-1]:.2f} s ({len(times)} frames), too short for {config.num_frames} frames at {config.fps:g} fps; "
            f"--fps={enough:g} would do, or fewer --num_frames, or --skip_bad."
        )
    rng = np.random.default_rng(common.seed_of(config.seed, str(path.relative_to(config.input))))
    parts = (np.arange(config.clips_per_video) + rng.random(config.clips_per_video)) / config.clips_per_video
    wanted = parts[:, None] * room + np.arange(config.num_frames) / config.fps
    shown = np.searchsorted(times, wanted + 1e-6, side="right") - 1  # the frame on the screen at a time
    needed = set(shown.ravel().tolist())
    frames = {
        index: media.resize(frame, config.height, config.width)
        for index, (_, frame) in enumerate(media.iterate_frames(path, config.limits))
        if index in needed
    }
    if len(frames) < len(needed):
        raise media.MediaError(f"{path} is damaged: it announces {len(times)} frames, but not all can be decoded.")
    return [np.stack([frames[int(index)] for index in clip]) for clip in shown]


class _Captions:
    """Captions by file: from one table for all files, or from a .txt beside each."""

    def __init__(self, config: VideoFolderConfig):
        self._folder = Path(config.input)
        self._table_path = Path(config.captions) if config.captions else caption_files.find_table(self._folder)
        self._table = caption_files.read_table(self._table_path) if self._table_path else {}

    def of(self, path: Path) -> list[str]:
        """The captions of a file, at least one; MediaError if it has none."""
        if self._table_path:
            entries = self._table.get(path.relative_to(self._folder).as_posix(), [])
            captions = [entry.text for entry in entries]
            place = str(self._table_path)
        else:
            sidecar = path.with_suffix(".txt")
            place = f"{sidecar} (one caption per line), since {self._folder} has no {' or '.join(caption_files.TABLES)}"
            captions = caption_files.read_lines(sidecar) if sidecar.is_file() else []
        if not captions:
            raise media.MediaError(f"{path} has no caption; it is looked for in {place}.")
        return captions

    def warn_of_missing(self, files: list[Path]) -> None:
        """Prints which files the table names that are not there: a misspelt name, most likely."""
        missing = sorted(set(self._table) - {path.relative_to(self._folder).as_posix() for path in files})
        if missing:
            print(
                f"warning: {self._table_path} has captions for {len(missing)} files that are not there, such as {missing[0]}."
            )
