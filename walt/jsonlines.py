"""Files, most of one JSON object per line, that grow while the run that writes them may be killed, or find the disk full, at any moment."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from walt.untrusted import parse_json


def append(path: epath.PathLike, entries: Iterable[Mapping[str, Any]]) -> None:
    """Adds a line for each entry, or none at all. Raises `OSError` that names the file, or what a bucket raises."""
    append_text(path, _lines(entries))


def append_text(path: epath.PathLike, text: str) -> None:
    """Adds whole lines to a file, or nothing at all; raises as `append` does."""
    path, added = epath.Path(path), text.encode()
    if is_in_bucket(path):  # where files cannot grow: opened to be appended to, they are overwritten
        before = path.read_bytes() if path.exists() else b""
        with _naming(path):
            path.write_bytes(before + _line_break(before[-1:]) + added)
        return
    end = path.stat().length if path.exists() else 0
    added = _line_break(_last_byte(path) if end else b"") + added
    with _naming(path):
        try:
            with path.open("ab") as file:
                file.write(added)
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
        if is_in_bucket(path):  # where a file is there once it is whole
            path.write_text(text)
            return
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


def is_in_bucket(path: epath.Path) -> bool:
    return "://" in str(path)


def _line_break(last: bytes) -> bytes:
    """What goes between the last byte of a file and another line: one cut short by an end in the middle of writing spoils no line but itself."""
    return b"" if last in (b"", b"\n") else b"\n"


def _last_byte(path: epath.Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)
