"""Record folders: a manifest and ArrayRecord shards of msgpack records, written as a whole or not at all.

    atari/manifest.json                              what is in here, counts and checksums; written last
    atari/train-00000-of-00008.arrayrecord           split "train"
    atari/heldout-00000-of-00008.arrayrecord         split "heldout"

A record is a flat msgpack map. Clips hold {"id", "clip" (see `media.encode_clip`), "captions", "label", "fps"}; latents
hold {"id", "captions", "label", "video", "images"}, and maybe {"low_video", "low_images"}, with raw float32 bytes whose shapes
stand in `Manifest.shapes`.
"""

import bisect
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
from absl import logging
from array_record.python import array_record_module

from walt.data.manifest import (
    FORMAT,
    MANIFEST,
    DatasetError,
    Manifest,
    Shard,
    Split,
    local,
    read_manifest,
    write_manifest,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "DatasetError",
    "Manifest",
    "RecordSource",
    "RecordWriter",
    "Shard",
    "Split",
    "already_prepared",
    "file_sha256",
    "new_dataset",
    "package_versions",
    "read_manifest",
    "shard_name",
    "verify",
    "write_manifest",
]

MAX_RECORD_BYTES = 2**30
_MAX_ITEMS = 4096  # entries of a list or map in a record
_FIRST_PAUSE = 0.1  # seconds before a failed read is tried again; doubled every time


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

    A read that fails is tried again with growing pauses, since storage has bad moments; a record that was damaged on its way to
    the disk stays damaged, so it is tried just once more.

    Args:
      directory: a finished record folder.
      split: the part to read.
      retry_seconds: how long a failing read is tried again. A shard that failed for so long is then tried once at each read.
      max_bytes: largest record that is looked into.

    Attributes:
      retries: reads that failed and were tried again.

    Raises:
      DatasetError: the folder, the split or a shard is missing or damaged.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str = "train",
        *,
        retry_seconds: float = 30.0,
        max_bytes: int = MAX_RECORD_BYTES,
    ):
        self.directory = local(directory)
        self.split = split
        self.manifest = read_manifest(directory)
        self.retries = 0
        self._retry_seconds, self._max_bytes = retry_seconds, max_bytes
        if split not in self.manifest.splits:
            raise DatasetError(f"{directory} has no split {split!r}; it has {sorted(self.manifest.splits)}.")
        shards = [shard for shard in self.manifest.splits[split].shards if shard.count]
        if not shards:
            raise DatasetError(f"Split {split!r} of {directory} is empty.")
        for shard in shards:
            _check_readable(self.directory / shard.file, shard.count)
        self._shards = [_ShardReader(self.directory / shard.file) for shard in shards]
        self._ends = list(itertools.accumulate(shard.count for shard in shards))
        self._given_up: set[int] = set()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index` of the split; DatasetError if its bytes cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"Record {index} of a split with {len(self)} records.")
        try:
            record = unpack(self._read(index), self._max_bytes)
        except Exception as error:  # array_record and msgpack raise plain and differing types
            raise DatasetError(f"Record {index} of {self.directory} ({self.split}) cannot be read: {error}") from error
        return record

    def _read(self, index: int) -> bytes:
        number = bisect.bisect_right(self._ends, index)
        position = index - (self._ends[number - 1] if number else 0)
        left = 0.0 if number in self._given_up else self._retry_seconds
        pause, failures = _FIRST_PAUSE, 0
        while True:
            try:
                data = self._shards[number].read(position)
                self._given_up.discard(number)
                return data
            except Exception as error:  # array_record raises plain RuntimeErrors, whose text alone tells them apart
                self._shards[number].close()
                failures += 1
                damaged = "orrupt" in str(error).replace(str(self._shards[number].path), "")
                if left <= 0 or (damaged and failures > 1):
                    if not damaged:
                        self._given_up.add(number)
                    raise
            time.sleep(min(pause, left))
            left, pause, self.retries = left - pause, 2 * pause, self.retries + 1


class _ShardReader:
    """One file, opened at the first read; pickles as one that is not open."""

    def __init__(self, path: Path):
        self.path = path
        self._reader: Any = None
        self._lock = threading.Lock()

    def read(self, position: int) -> bytes:
        with self._lock:
            if self._reader is None:
                # No reading ahead: records are wanted in random order.
                self._reader = array_record_module.ArrayRecordReader(
                    str(self.path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
                )
            reader = self._reader
        (data,) = reader.read([position])
        if not data:  # what a file gives that was cut short while it was open
            raise OSError(f"{self.path} ends before this record")
        return data

    def close(self) -> None:
        """Lets go of the reader: one that has failed fails for ever, whatever becomes of its file."""
        with self._lock:
            self._reader = None

    def __reduce__(self) -> tuple:
        return _ShardReader, (self.path,)


def unpack(data: bytes, max_bytes: int = MAX_RECORD_BYTES) -> dict[str, Any]:
    """The record that msgpack bytes stand for; a `ValueError` of some kind if they are anything else, or larger."""
    if len(data) > max_bytes:
        raise ValueError(f"it has {len(data):,} bytes, more than {max_bytes:,}")
    # The limits hold before anything is allocated: a few bytes can announce a list of millions.
    record = msgpack.unpackb(data, max_array_len=_MAX_ITEMS, max_map_len=_MAX_ITEMS, max_ext_len=0)
    if not isinstance(record, dict) or not all(isinstance(name, str) for name in record):
        raise ValueError("it is not a msgpack map with names")
    return record


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
    directory = local(directory)
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
    directory = local(directory).absolute()
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
