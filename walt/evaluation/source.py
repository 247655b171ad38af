"""Clips from disk: prepared data sets, whole or in chunks, and folders of generated videos with their prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from walt.data import caption_files, media
from walt.data.latents import described, record_field
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
        captions, label = described(source[index])
        for caption in captions:
            found.setdefault(caption, set()).add(label)
    return {caption: next(iter(labels)) for caption, labels in found.items() if len(labels) == 1}


def read_generated(directory: str | os.PathLike[str], real: Clips, captions: Mapping[str, str]) -> Clips:
    """Generated clips with prompts and labels, from a prepared data set or from a folder of mp4, webm and gif files.

    In a folder the prompt of `a.mp4` is the first line of `a.txt` beside it, or stands in `captions.csv` or `captions.jsonl` with the fields
    file and caption. Its label is, in this order: the field `label` there; the name of the subfolder if that is a label of `real`; what
    `captions` (see `caption_labels`) says of the prompt; the label of `real` if it has one alone.
    Videos whose sides are the same multiple of the real ones are shrunk by it: `walt sample` enlarges pixels for the eye.
    Raises `EvaluationError` naming the file when it has no prompt, no label or another shape than the first; `MediaError` for damaged ones
    and for captions that cannot be read.
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
    table = caption_files.find_table(directory)
    rows = {} if table is None else {name: found[0] for name, found in caption_files.read_table(table).items()}
    videos: list[np.ndarray] = []
    prompts, labels = [], []
    for file in files:
        prompt, label = _prompt_of(file, directory, rows)
        labels.append(label or _label_of(file, directory, prompt, real.label_names, captions))
        prompts.append(prompt)
        video = _shrunk(media.read_video(file)[0], real.clip_shape[1], real.clip_shape[2])
        if videos and video.shape != videos[0].shape:
            raise EvaluationError(
                f"{file} is {list(video.shape)} but {files[0].name} is {list(videos[0].shape)}: all need one shape"
            )
        videos.append(video)
    ids = tuple(file.relative_to(directory).as_posix() for file in files)
    return Clips(np.stack(videos), tuple(labels), tuple(prompts), ids)


def _gather(source: RecordSource, rows: np.ndarray) -> Clips:
    videos: np.ndarray | None = None
    labels, prompts, ids = [], [], []
    for position, row in enumerate(rows):
        record = source[int(row)]
        if "clip" not in record:
            raise EvaluationError(
                f"{source.directory} holds {source.manifest.name!r} records without clips; name a data set of videos"
            )
        video = media.decode_clip(record_field(record, "clip", bytes))
        captions, label = described(record)
        if videos is None:
            videos = np.empty((len(rows), *video.shape), np.uint8)
        if video.shape != videos.shape[1:]:
            raise EvaluationError(
                f"{source.directory}: clip {record.get('id')!r} is {list(video.shape)}, others are {list(videos.shape[1:])}"
            )
        videos[position] = video
        labels.append(label)
        prompts.append(captions[0] if captions else "")
        ids.append(str(record.get("id")))
    assert videos is not None
    return Clips(videos, tuple(labels), tuple(prompts), tuple(ids))


def _prompt_of(file: Path, directory: Path, rows: Mapping[str, caption_files.Caption]) -> caption_files.Caption:
    """The prompt of a file, with its label if that is written down."""
    row = rows.get(file.relative_to(directory).as_posix())
    if row is not None:
        return row
    sidecar = file.with_suffix(".txt")
    lines = caption_files.read_lines(sidecar) if sidecar.is_file() else []
    if not lines:
        raise EvaluationError(
            f"{file} has no prompt: write it to {sidecar.name} beside it or to captions.jsonl (fields file, caption)"
        )
    return caption_files.Caption(lines[0], label="")


def _label_of(file: Path, directory: Path, prompt: str, known: tuple[str, ...], captions: Mapping[str, str]) -> str:
    folder = file.relative_to(directory).parts[0]
    if folder in known:
        return folder
    if prompt in captions:
        return captions[prompt]
    if len(known) == 1:
        return known[0]
    raise EvaluationError(
        f"{file}: no real clip has the caption {prompt!r}, so its label is unknown; add the field `label` to captions.jsonl "
        f"(one of {', '.join(known)})"
    )


def _shrunk(video: np.ndarray, height: int, width: int) -> np.ndarray:
    """The video at the real size if its sides are one whole multiple of that, else as it is."""
    factor = video.shape[1] // height
    if factor < 2 or video.shape[1:3] != (factor * height, factor * width):
        return video
    blocks = video.reshape(len(video), height, factor, width, factor, 3)
    return np.rint(blocks.mean(axis=(2, 4))).astype(np.uint8)
