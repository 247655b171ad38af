"""Samples of a labelled data set's prompts, and reconstructions of its clips: what evaluations of a model look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from walt.data import media
from walt.evaluation import Clips
from walt.generation.pipeline import Pipeline


def sample_labels(pipeline: Pipeline, heldout: Clips, seeds: int, **options: Any) -> Clips:
    """`seeds` samples for one prompt per label of the held-out clips, labelled by what the prompt names; `options` as `generate` takes them."""
    prompts = {label: heldout.prompts[int(heldout.rows_of(label)[0])] for label in heldout.label_names}
    if pipeline.class_names:
        prompts = {label: label for label in prompts}
    labels = tuple(label for label in prompts for _ in range(seeds))
    texts = tuple(prompts[label] for label in labels)
    return Clips(pipeline.generate(list(texts), **options), labels, texts)


def reconstruct(pipeline: Pipeline, clips: Clips, batch: int = 16) -> np.ndarray:
    """Clips through the autoencoder and back; one shape is compiled, the last batch overlaps the one before."""
    batch = min(batch, len(clips))
    made = np.empty_like(clips.videos)
    for start in range(0, len(clips), batch):
        first = min(start, len(clips) - batch)
        made[first : first + batch] = pipeline.reconstruct(clips.videos[first : first + batch])
    return made


def write_videos(clips: Clips, folder: Path, fps: float) -> None:
    """One mp4 per sample with its prompt beside it, and a contact sheet of the first two samples of every prompt."""
    folder.mkdir(exist_ok=True)
    for index, (video, prompt) in enumerate(zip(clips.videos, clips.prompts, strict=True)):
        path = folder / f"{index:03d}-{clips.labels[index]}.mp4"
        media.write_video(path, video, fps, scale=4)
        path.with_suffix(".txt").write_text(prompt + "\n")
    shown = [int(row) for label in clips.label_names for row in clips.rows_of(label)[:2]]
    media.contact_sheet(clips.videos[shown], folder / "contact_sheet.png", labels=[clips.prompts[row] for row in shown])
