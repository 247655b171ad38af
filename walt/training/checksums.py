"""Checksums of the files of a checkpoint, in `checksums.json` beside them.

TensorStore checks its indices, but takes a flipped bit of an array for a number. The sums (CRC-32, with sizes) tell damage that happens by
itself, not tampering. They are written before the mark that makes a checkpoint whole, so every whole one has them, unless an older version wrote it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from walt.untrusted import field, parse_json

FILE = "checksums.json"
BLOCK = 2**22  # bytes read at a time
THREADS = min(32, 4 + (os.cpu_count() or 1))  # zlib lets go of Python's lock, and storage is slow to answer


class DamageError(ValueError):
    """A file is not what was written; the message names it."""


def write(folder: epath.Path, items: Iterable[str]) -> None:
    """Writes the sums of all files in these parts of a checkpoint."""
    names = sorted(str(file.relative_to(folder)) for item in items for file in _files(folder / item))
    with ThreadPoolExecutor(THREADS) as pool:
        sums = dict(zip(names, pool.map(lambda name: _sum(folder / name), names)))
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(sums, indent=1))
    partial.replace(folder / FILE)


def complete(folder: epath.Path) -> bool:
    """Whether all files that were written are there, whatever they hold; false if there is no list of them."""
    try:
        return all((folder / name).exists() for name in _listed(folder) if _is_inside(name))
    except (OSError, DamageError):
        return False


def verify(folder: epath.Path, items: Iterable[str], part: int = 0, parts: int = 1) -> bool:
    """Raises `DamageError` unless the files of these parts of a checkpoint are those that were written; False if there are no checksums.

    Of the files in order, every `parts`-th is looked at from number `part` on: the processes of a job share them.
    """
    if not (folder / FILE).exists():
        return False
    expected = _listed(folder)
    wanted = tuple(f"{item}/" for item in items)
    names = [name for name in sorted(expected) if name.startswith(wanted) and _is_inside(name)][part::parts]
    with ThreadPoolExecutor(THREADS) as pool:
        for name, found in zip(names, pool.map(lambda name: _sum_if_there(folder / name), names)):
            if found is None:
                raise DamageError(f"{name} is missing")
            if found["bytes"] != expected[name]["bytes"]:
                raise DamageError(f"{name} has {found['bytes']} bytes, and {expected[name]['bytes']} were written")
            if found != expected[name]:
                raise DamageError(f"{name} does not hold what was written (its checksum differs)")
    return True


def _listed(folder: epath.Path) -> dict[str, dict[str, int]]:
    """Name → size and sum of the files that were written."""
    try:
        stored = parse_json((folder / FILE).read_text())
        sums = {name: field(stored, name, dict) for name in stored}
        return {name: {key: field(entry, key, int) for key in ("bytes", "crc32")} for name, entry in sums.items()}
    except (ValueError, TypeError) as error:
        raise DamageError(f"{FILE} is no list of checksums ({error})") from error


def _is_inside(name: str) -> bool:
    return ".." not in name.split("/")


def _files(folder: epath.Path) -> Iterable[epath.Path]:
    for entry in folder.iterdir():
        yield from _files(entry) if entry.is_dir() else [entry]


def _sum_if_there(file: epath.Path) -> dict[str, int] | None:
    try:
        return _sum(file)
    except FileNotFoundError:
        return None


def _sum(file: epath.Path) -> dict[str, int]:
    size = crc = 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return {"bytes": size, "crc32": crc}
