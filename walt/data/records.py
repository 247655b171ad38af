"""Record folders: a manifest and ArrayRecord shards of msgpack records, written as a whole or not at all.

    atari/manifest.json                              what is in here, counts and checksums; written last
    atari/train-00000-of-00008.arrayrecord           split "train"
    atari/heldout-00000-of-00008.arrayrecord         split "heldout"

A record is a flat msgpack map. Clips hold {"id", "clip" (see `media.encode_clip`), "captions", "label", "fps"}; latents
hold {"id", "captions", "label", "video", "images"}, and maybe {"low_video", "low_images"}, with raw float32 bytes whose shapes
stand in `Manifest.shapes`.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
from absl import logging
from array_record.python import array_record_data_source, array_record_module

FORMAT = 1
MANIFEST = "manifest.json"


class DatasetError(ValueError):
    """A record folder is missing, half written, damaged or of another kind; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name inside the folder, its records and its checksum."""

    file: str
    count: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """A named part of a data set ("train" or "heldout") and the shards that hold it."""

    count: int
    shards: tuple[Shard, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a record folder holds.

    Attributes:
      name: the recipe that made it ("atari", "film", "video_folder", "tfds", "latents").
      splits: the parts of the data set by name.
      shapes: shape of every array field of a record, e.g. {"clip": (17, 64, 64, 3)}.
      fps: frames per second of the clips.
      seed: the seed the footage was made or chosen with.
      request: the arguments of the recipe; a second request that differs is refused.
      versions: the packages that made the content.
      extra: anything else a recipe wants to keep (label counts, autoencoder checksum).
    """

    name: str
    splits: Mapping[str, Split]
    shapes: Mapping[str, tuple[int, ...]]
    fps: float
    seed: int
    request: Mapping[str, Any]
    versions: Mapping[str, str]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def summary(self) -> str:
        """One line for people, such as "240 train and 24 heldout records, clip 17x64x64x3, 8 fps"."""
        counts = " and ".join(f"{split.count:,} {name}" for name, split in self.splits.items())
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        return f"{counts} records, {shapes}, {self.fps:g} fps"


class RecordWriter:
    """Writes the records of one split into `num_shards` files, round robin; use it as a context manager.

    Args:
      directory: the folder under construction (see `new_dataset`).
      split: "train" or "heldout".
      num_shards: number of files of the split.
      first_shard: index of the first file, when several processes each write some of the files.
      shards_here: how many of the files this writer writes; all from `first_shard` on by default.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        num_shards: int = 1,
        first_shard: int = 0,
        shards_here: int | None = None,
    ):
        last = num_shards if shards_here is None else first_shard + shards_here
        self._paths = [Path(directory) / shard_name(split, index, num_shards) for index in range(first_shard, last)]
        # Media bytes are compressed already; group size 1 gives random access to single records.
        self._writers = [
            array_record_module.ArrayRecordWriter(str(p), "group_size:1,uncompressed") for p in self._paths
        ]
        self._counts = [0] * len(self._paths)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record (values: str, bytes, numbers and lists of them)."""
        index = sum(self._counts) % len(self._writers)
        self._writers[index].write(msgpack.packb(dict(record)))
        self._counts[index] += 1

    def close(self) -> Split:
        """Closes the files and returns their counts and checksums."""
        for writer in self._writers:
            if writer.is_open():
                writer.close()
        shards = tuple(
            Shard(path.name, count, file_sha256(path)) for path, count in zip(self._paths, self._counts, strict=True)
        )
        return Split(sum(self._counts), shards)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers:
            if writer.is_open():
                writer.close()


class RecordSource:
    """Random access to the decoded records of one split; picklable, so that loader workers can carry it.

    Args:
      directory: a finished record folder.
      split: the part to read.

    Raises:
      DatasetError: the folder, the split or a shard is missing or damaged.
    """

    def __init__(self, directory: str | os.PathLike, split: str = "train"):
        self.directory = _local(directory)
        self.split = split
        self.manifest = read_manifest(directory)
        if split not in self.manifest.splits:
            raise DatasetError(f"{directory} has no split {split!r}; it has {sorted(self.manifest.splits)}.")
        shards = [shard for shard in self.manifest.splits[split].shards if shard.count]
        if not shards:
            raise DatasetError(f"Split {split!r} of {directory} is empty.")
        for shard in shards:
            _check_readable(self.directory / shard.file, shard.count)
        # The explicit range spares opening every file once more just to count it.
        instructions = [f"{self.directory / shard.file}[0:{shard.count}]" for shard in shards]
        self._source = array_record_data_source.ArrayRecordDataSource(instructions)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index` of the split; DatasetError if its bytes cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of a split with {len(self)} records.")
        try:
            record = msgpack.unpackb(self._source[index])
        except Exception as error:  # array_record and msgpack raise plain and differing types
            raise DatasetError(f"Record {index} of {self.directory} ({self.split}) cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise DatasetError(f"Record {index} of {self.directory} ({self.split}) is not a msgpack map.")
        return record


def _local(directory: str | os.PathLike) -> Path:
    if "://" in str(directory):
        raise DatasetError(
            f"{directory} is not a local path; ArrayRecord needs one, so mount the bucket or copy the folder."
        )
    return Path(directory)


def _check_readable(path: Path, count: int) -> None:
    """Raises DatasetError unless the shard is there, has its footer and holds `count` records."""
    if not path.is_file():
        raise DatasetError(f"{path} is missing; prepare the data set again in a new folder.")
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        found = reader.num_records()
        reader.close()
    except Exception as error:  # array_record raises plain RuntimeErrors and ValueErrors
        raise DatasetError(f"{path} is half written or damaged ({error}); prepare the data set again.") from error
    if found != count:
        raise DatasetError(f"{path} holds {found} records, not {count}; prepare the data set again.")


def shard_name(split: str, index: int, num_shards: int) -> str:
    """File name of a shard."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.arrayrecord"


def file_sha256(path: str | os.PathLike) -> str:
    """Checksum of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions(*packages: str) -> dict[str, str]:
    """Installed versions of the named packages, for a manifest."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def write_manifest(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes manifest.json in one atomic step; do it last, since its presence says that the folder is whole."""
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}, indent=2) + "\n"
    temporary = Path(directory) / (MANIFEST + ".partial")
    temporary.write_text(text)
    os.replace(temporary, Path(directory) / MANIFEST)


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Reads the manifest of a finished record folder.

    Raises:
      DatasetError: no such folder, no manifest (half written), not JSON, or an unknown format.
    """
    directory = _local(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise DatasetError(f"There is no data set at {directory}; make one with `walt prepare … --output={directory}`.")
    if not path.is_file():
        raise DatasetError(
            f"{directory} is no prepared data set, or a damaged one: it has no {MANIFEST}; name another folder, or make a data "
            f"set of videos and images with `walt prepare video_folder --input={directory} --output=…`."
        )
    try:
        fields = json.loads(path.read_text())
        version = fields.pop("format")
    except (ValueError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is not a manifest ({error}); remove the folder and prepare it again.") from error
    if version != FORMAT:
        raise DatasetError(f"{path} has format {version}, this version of walt reads format {FORMAT}.")
    try:
        splits = {
            name: Split(split["count"], tuple(Shard(**shard) for shard in split["shards"]))
            for name, split in fields.pop("splits").items()
        }
        shapes = {name: tuple(shape) for name, shape in fields.pop("shapes").items()}
        return Manifest(splits=splits, shapes=shapes, **fields)
    except (TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} lacks or mistypes a field ({error}); prepare the data set again.") from error


def verify(directory: str | os.PathLike) -> Manifest:
    """Checks that every shard is present and has the checksum of the manifest, and returns the manifest."""
    manifest = read_manifest(directory)
    for split in manifest.splits.values():
        for shard in split.shards:
            path = Path(directory) / shard.file
            if not path.is_file():
                raise DatasetError(f"{path} is missing; remove {directory} and prepare it again.")
            if file_sha256(path) != shard.sha256:
                raise DatasetError(
                    f"{path} is damaged (its checksum differs); remove {directory} and prepare it again."
                )
    return manifest


def already_prepared(directory: str | os.PathLike, name: str, request: Mapping[str, Any]) -> Manifest | None:
    """The manifest if the folder holds just what is requested, which is printed; None if the folder is free to be written.

    Raises:
      DatasetError: the folder is broken, or was made by another recipe or with other arguments.
    """
    directory = _local(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not directory.is_dir():
        raise DatasetError(f"{directory} is a file; --output must name a folder.")
    manifest = verify(directory)
    wanted = json.loads(json.dumps(request))
    if manifest.name != name:
        raise DatasetError(f"{directory} holds a {manifest.name!r} data set, not {name!r}; choose another --output.")
    if manifest.request != wanted:
        keys = sorted(k for k in {*manifest.request, *wanted} if manifest.request.get(k) != wanted.get(k))
        changes = ", ".join(f"{key} {manifest.request.get(key)!r} -> {wanted.get(key)!r}" for key in keys)
        raise DatasetError(f"{directory} was prepared with other arguments ({changes}); choose another --output.")
    print(f"{directory} already holds this data set: {manifest.summary()}")
    return manifest


@contextlib.contextmanager
def new_dataset(directory: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary sibling folder that becomes `directory` if the block succeeds and vanishes if it fails.

    The block writes the manifest too; what it says is printed.

    Raises:
      DatasetError: something else took the place of `directory` meanwhile; the finished work is kept and named.
    """
    directory = _local(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}.partial-"
    for leftover in sorted(directory.parent.glob(prefix + "*")):
        logging.warning("%s is left over from a run that was killed, or belongs to one that still runs.", leftover)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes folders private
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        os.rename(temporary, directory)  # succeeds only if the target is absent or an empty folder
    except OSError as error:
        raise DatasetError(
            f"{directory} was written by somebody else meanwhile; this data set is in {temporary}."
        ) from error
    print(f"wrote {directory}: {read_manifest(directory).summary()}")
