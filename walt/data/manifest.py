"""The manifest of a record folder: what the folder holds, in JSON that is read with suspicion, since folders travel."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from walt.untrusted import field, parse_json, typed

FORMAT = 1
MANIFEST = "manifest.json"
_MAX_BYTES = 2**28


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

    def checksum(self) -> str:
        """Of the records of all splits, and not of where they lie."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.splits.items()}
        return hashlib.sha256(json.dumps(shards, sort_keys=True).encode()).hexdigest()

    def summary(self) -> str:
        """One line for people, such as "240 train and 24 heldout records, clip 17x64x64x3, 8 fps"."""
        counts = " and ".join(f"{split.count:,} {name}" for name, split in self.splits.items())
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        return f"{counts} records, {shapes}, {self.fps:g} fps"


def write_manifest(directory: str | os.PathLike, manifest: Manifest) -> None:
    """Writes manifest.json in one atomic step; do it last, since its presence says that the folder is whole."""
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}, indent=2) + "\n"
    temporary = Path(directory) / (MANIFEST + ".partial")
    temporary.write_text(text)
    os.replace(temporary, Path(directory) / MANIFEST)


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Reads the manifest of a finished record folder.

    Raises:
      DatasetError: no such folder, no manifest (half written), not JSON, an unknown format, or a field that is missing, mistyped,
        unknown or absurd; a shard must be a plain file name, so that no manifest makes us read elsewhere on the disk.
    """
    directory = local(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise DatasetError(f"There is no data set at {directory}; make one with `walt prepare … --output={directory}`.")
    if not path.is_file():
        raise DatasetError(
            f"{directory} is no prepared data set, or a damaged one: it has no {MANIFEST}; name another folder, or make a data "
            f"set of videos and images with `walt prepare video_folder --input={directory} --output=…`."
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
        fields = typed(parse_json(path.read_bytes()), dict, "a manifest")
        version = field(fields, "format", int)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is not a manifest ({error}); remove the folder and prepare it again.") from error
    if version != FORMAT:
        raise DatasetError(f"{path} has format {version}, this version of walt reads format {FORMAT}.")
    try:
        return _parse({name: value for name, value in fields.items() if name != "format"})
    except ValueError as error:
        raise DatasetError(f"{path} lacks or mistypes a field ({error}); prepare the data set again.") from error


def local(directory: str | os.PathLike) -> Path:
    """The folder as a path; `DatasetError` if it lies in a bucket."""
    if "://" in str(directory):
        raise DatasetError(
            f"{directory} is not a local path; ArrayRecord needs one, so mount the bucket or copy the folder."
        )
    return Path(directory)


def _parse(fields: dict[str, Any]) -> Manifest:
    """The manifest that the JSON says; `ValueError` naming the field that is wrong."""
    fields.setdefault("extra", {})
    _check_names(fields, Manifest)
    fps = field(fields, "fps", float)
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    versions = field(fields, "versions", dict)
    return Manifest(
        name=field(fields, "name", str),
        splits={typed(name, str, "a split"): _split(split) for name, split in field(fields, "splits", dict).items()},
        shapes={name: _shape(name, shape) for name, shape in field(fields, "shapes", dict).items()},
        fps=fps,
        seed=field(fields, "seed", int),
        request=field(fields, "request", dict),
        versions={name: typed(version, str, f"the version of {name}") for name, version in versions.items()},
        extra=field(fields, "extra", dict),
    )


def _split(split: Any) -> Split:
    _check_names(split, Split)
    shards = tuple(_shard(shard) for shard in field(split, "shards", list))
    count = _count(split)
    if count != sum(shard.count for shard in shards):
        raise ValueError(f"a split of {count} records has shards with {sum(shard.count for shard in shards)}")
    return Split(count, shards)


def _shard(shard: Any) -> Shard:
    _check_names(shard, Shard)
    file = field(shard, "file", str)
    if file in ("", ".", "..") or any(character in file for character in "/\\\0"):
        raise ValueError(f"{file!r} is not a plain file name")
    return Shard(file, _count(shard), field(shard, "sha256", str))


def _count(entry: Any) -> int:
    count = field(entry, "count", int)
    if not 0 <= count < 2**48:
        raise ValueError(f"count must be a number of records, got {count}")
    return count


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    sizes = tuple(typed(size, int, f"the shape of {name}") for size in typed(shape, list, f"the shape of {name}"))
    if len(sizes) > 8 or any(not 0 <= size < 2**31 for size in sizes):
        raise ValueError(f"{name} cannot have the shape {sizes}")
    return sizes


def _check_names(entry: Any, kind: type) -> None:
    names = {each.name for each in dataclasses.fields(kind)}
    unknown = sorted(set(typed(entry, dict, f"a {kind.__name__.lower()}")) - names)
    if unknown:
        raise ValueError(f"a {kind.__name__.lower()} has no field {unknown[0]!r}")
