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
    with _naming(path):
        try:
            with path.open("a") as file:
                file.write(text)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, end)
            raise


def rewrite(path: epath.PathLike, entries: Iterable[Mapping[str, Any]]) -> None:
    """Makes these the lines of the file, which is moved into place when it is whole, and left alone if it has them already.

    Raises `OSError` that names the file.
    """
    path, text = epath.Path(path), _lines(entries)
    if path.exists() and path.read_bytes() == text.encode():
        return
    partial = path.with_name(f".{path.name}.partial")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def read(path: epath.PathLike) -> Iterator[Any]:
    """The values of all lines; one that is not whole, such as an interruption leaves, is passed over."""
    for line in epath.Path(path).read_bytes().decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            yield parse_json(line)


@contextlib.contextmanager
def _naming(path: epath.Path) -> Iterator[None]:
    """What the system says of a file, with the file's name, which it leaves out where writing fails."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lines(entries: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def _ends_a_line(path: epath.Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
