"""Clips from disk: prepared data sets, whole or in chunks, and folders of generated videos with their prompts."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from walt.data import media
from walt.data.records import MANIFEST, RecordSource, read_manifest
from walt.evaluation.clips import Clips, EvaluationError, evenly_spaced

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif")


@dataclass(frozen=True)
class PreparedClips:
    """The clips of one split of a prepared data set, `chunk` at a time and as often as wanted; never held at once.

    Raises `DatasetError` when walked if the folder or split is missing or damaged, `EvaluationError` if it holds no clips.
    """

    directory: str | os.PathLike[str]
    split: str = "train"
    chunk: int = 128

    def __iter__(self) -> Iterator[Clips]:
        source = RecordSource(self.directory, self.split)
        for start in range(0, len(source), self.chunk):
            yield _gather(source, np.arange(start, min(start + self.chunk, len(source))))


def read_clips(directory: str | os.PathLike[str], split: str = "heldout", limit: int | None = None) -> Clips:
    """A split of a prepared data set in memory; with `limit`, that many evenly spaced clips of it. The prompt is the first caption."""
    source = RecordSource(directory, split)
    return _gather(source, evenly_spaced(len(source), len(source) if limit is None else limit))


def caption_labels(directory: str | os.PathLike[str], split: str = "heldout") -> dict[str, str]:
    """Caption -> label over all clips of a split, without the captions that clips of several labels share."""
    source = RecordSource(directory, split)
    found: dict[str, set[str]] = {}
    for index in range(len(source)):
        record = source[index]
        for caption in record["captions"]:
            found.setdefault(caption, set()).add(record["label"])
    return {caption: next(iter(labels)) for caption, labels in found.items() if len(labels) == 1}


def read_generated(directory: str | os.PathLike[str], labels: Mapping[str, str]) -> Clips:
    """Generated clips with prompts and labels, from a prepared data set or from a folder of mp4, webm and gif files.

    In a folder the prompt of `a.mp4` stands in `a.txt` beside it, or in `captions.jsonl` or `captions.csv` with the fields file, caption and,
    optionally, label. The label of a prompt without one is looked up in `labels` (what `caption_labels` returned for the real clips).
    Raises `EvaluationError` naming the file when a video cannot be read, has no prompt or an unknown one, or has another size than the first.
    """
    directory = Path(directory)
    if (directory / MANIFEST).is_file():
        splits = read_manifest(directory).splits
        return read_clips(directory, "generated" if "generated" in splits else "heldout")
    if not directory.is_dir():
        raise EvaluationError(f"there is no folder of generated videos at {directory}")
    files = sorted(path for path in directory.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise EvaluationError(f"{directory} holds no videos ({', '.join(VIDEO_SUFFIXES)}) and is no prepared data set")
    listed = _listed_captions(directory)
    videos: list[np.ndarray] = []
    prompts, names = [], []
    for file in files:
        prompt, label = _prompt_of(file, directory, listed)
        if label is None and prompt not in labels:
            raise EvaluationError(
                f"{file}: no real clip has the caption {prompt!r}; add its label to captions.jsonl (file, caption, label)"
            )
        video = media.read_video(file)[0]
        if videos and video.shape != videos[0].shape:
            raise EvaluationError(
                f"{file} is {list(video.shape)} but {files[0].name} is {list(videos[0].shape)}: all need one shape"
            )
        videos.append(video)
        prompts.append(prompt)
        names.append(labels[prompt] if label is None else label)
    return Clips(
        np.stack(videos), tuple(names), tuple(prompts), tuple(file.relative_to(directory).as_posix() for file in files)
    )


def _gather(source: RecordSource, rows: np.ndarray) -> Clips:
    videos: np.ndarray | None = None
    labels, prompts, ids = [], [], []
    for position, row in enumerate(rows):
        record = source[int(row)]
        if "clip" not in record:
            raise EvaluationError(
                f"{source.directory} holds {source.manifest.name!r} records without clips; name a data set of videos"
            )
        video = media.decode_clip(record["clip"])
        if videos is None:
            videos = np.empty((len(rows), *video.shape), np.uint8)
        if video.shape != videos.shape[1:]:
            raise EvaluationError(
                f"{source.directory}: clip {record['id']!r} is {list(video.shape)}, others are {list(videos.shape[1:])}"
            )
        videos[position] = video
        labels.append(record["label"])
        prompts.append(record["captions"][0] if record["captions"] else "")
        ids.append(record["id"])
    assert videos is not None
    return Clips(videos, tuple(labels), tuple(prompts), tuple(ids))


def _listed_captions(directory: Path) -> dict[str, dict[str, Any]]:
    """File name -> row of captions.jsonl or captions.csv; empty when there is neither."""
    rows: list[dict[str, Any]] = []
    lines, table = directory / "captions.jsonl", directory / "captions.csv"
    try:
        if lines.is_file():
            rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif table.is_file():
            with table.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        return {str(row["file"]): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{lines if lines.is_file() else table}: every row needs the fields file and caption ({error!r})"
        ) from error


def _prompt_of(file: Path, directory: Path, listed: Mapping[str, Mapping[str, Any]]) -> tuple[str, str | None]:
    row = listed.get(file.relative_to(directory).as_posix())
    if row is not None and row.get("caption"):
        return str(row["caption"]), row.get("label") or None
    sidecar = file.with_suffix(".txt")
    if not sidecar.is_file():
        raise EvaluationError(
            f"{file} has no prompt: put it in {sidecar.name} beside it or in captions.jsonl (file, caption, label)"
        )
    return sidecar.read_text(encoding="utf-8").strip(), None
