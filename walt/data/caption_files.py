"""Captions of media files, as people write them down: one table for a folder, or a .txt beside each file."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from walt.data.media import MediaError
from walt.untrusted import parse_json, typed

TABLES = ("captions.csv", "captions.jsonl")
_MAX_CAPTIONS = 1024  # of a file; a record is not read with more than 4,096
_MAX_LINE = 2**17  # characters; a line is a caption or a few, and csv allows as much for a field


class Caption(NamedTuple):
    """What a table says of a file; the label is empty where it gives none."""

    text: str
    label: str


def find_table(folder: Path) -> Path | None:
    """The folder's table of captions, if it has one."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def read_table(path: Path) -> dict[str, list[Caption]]:
    """Captions by file, relative to the table's folder, from a csv with a header line or from a jsonl file.

    An entry has the fields `file` and `caption`, and may have `label`. Raises `MediaError` naming the table and the entry.
    """
    if not path.is_file():
        raise MediaError(f"There is no captions file {path}.")
    if path.suffix not in (".csv", ".jsonl"):
        raise MediaError(f"The captions file {path} must end in .csv or .jsonl.")
    table: dict[str, list[Caption]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _lines(file)
            rows = csv.DictReader(lines) if path.suffix == ".csv" else (parse_json(x) for x in lines if x.strip())
            for number, row in enumerate(rows, 1):
                fields = {name: _text(row, name) for name in ("file", "caption", "label")}
                if not fields["file"] or not fields["caption"].strip():
                    raise MediaError(f"Entry {number} of {path} must have a `file` and a `caption`, both of them text.")
                caption = Caption(fields["caption"].strip(), fields["label"].strip())
                captions = table.setdefault(Path(fields["file"]).as_posix(), [])
                captions.append(caption)
                _check_number(captions)
    except MediaError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise MediaError(f"{path} cannot be read: {error}") from error
    return table


def read_lines(path: Path) -> list[str]:
    """The captions in a .txt file, one per line; `MediaError` if it is not UTF-8 or has a line of absurd length."""
    try:
        with path.open(encoding="utf-8") as file:
            captions: list[str] = []
            for chunk in _lines(file):
                captions += [line.strip() for line in chunk.splitlines() if line.strip()]
                _check_number(captions)
            return captions
    except UnicodeDecodeError as error:
        raise MediaError(f"{path} is not UTF-8 text: {error}") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{path} cannot be read: {error}") from error


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise ValueError(f"a line has more than {_MAX_LINE:,} characters")
        yield line


def _check_number(captions: list[Any]) -> None:
    if len(captions) > _MAX_CAPTIONS:
        raise ValueError(f"a file has more than {_MAX_CAPTIONS:,} captions")


def _text(row: Any, name: str) -> str:
    """A field of a row; empty if it is absent or anything but text. `ValueError` for text that cannot be stored."""
    value = row.get(name) if isinstance(row, dict) else None
    return typed(value, str, name) if isinstance(value, str) else ""
