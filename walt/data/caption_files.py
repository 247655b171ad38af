"""Captions of media files, as people write them down: one table for a folder, or a .txt beside each file."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

from walt.data.media import MediaError

TABLES = ("captions.csv", "captions.jsonl")


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
            rows = (
                csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
            )
            for number, row in enumerate(rows, 1):
                fields = {name: _text(row, name) for name in ("file", "caption", "label")}
                if not fields["file"] or not fields["caption"].strip():
                    raise MediaError(f"Entry {number} of {path} must have a `file` and a `caption`, both of them text.")
                caption = Caption(fields["caption"].strip(), fields["label"].strip())
                table.setdefault(Path(fields["file"]).as_posix(), []).append(caption)
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise MediaError(f"{path} cannot be read: {error}") from error
    return table


def read_lines(path: Path) -> list[str]:
    """The captions in a .txt file, one per line; `MediaError` if it is not UTF-8."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise MediaError(f"{path} is not UTF-8 text: {error}") from error


def _text(row: Any, name: str) -> str:
    """A field of a row; empty if it is absent or anything but text."""
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, str) else ""
