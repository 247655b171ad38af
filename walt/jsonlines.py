"""Files of one JSON object per line that grow while the run that writes them may be killed, or find the disk full, at any moment."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from walt.untrusted import parse_json


def append(path: epath.PathLike, entries: Iterable[Mapping[str, Any]]) -> None:
    """Adds a line for each entry, or none at all. Raises `OSError` that names the file."""
    path, text = epath.Path(path), _lines(entries)
    end = path.stat().length if path.exists() else 0
    if end and not _ends_a_line(path):  # cut short by an end in the middle of writing: it must spoil no line but itself
        text = "\n" + text
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, end)
        raise OSError(error.errno, error.strerror, str(path)) from error


def rewrite(path: epath.PathLike, entries: Iterable[Mapping[str, Any]]) -> None:
    """Makes these the lines of the file, which is moved into place when it is whole, and left alone if it has them already."""
    path, text = epath.Path(path), _lines(entries)
    if path.exists() and path.read_bytes() == text.encode():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def read(path: epath.PathLike) -> Iterator[Any]:
    """The values of all lines; one that is not whole, such as an interruption leaves, is passed over."""
    for line in epath.Path(path).read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            yield parse_json(line)


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _ends_a_line(path: epath.Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
