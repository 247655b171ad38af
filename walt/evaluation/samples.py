"""Videos that a model makes when they are asked for, as footage: they are measured without being written anywhere."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from walt.data.media import MediaError
from walt.evaluation.clips import EvaluationError
from walt.evaluation.features import ALONE, Share
from walt.evaluation.footage import Choose, Footage, Video
from walt.evaluation.measure import RealStatistics

SampleFn = Callable[[Sequence[int]], UInt8[np.ndarray, "n t h w 3"]]
"""The videos of these numbers; that of a number is the same whenever it is asked for, and with whatever others."""
BATCH = 16
MOST_BYTES = 2**30
"""Of videos that are kept once they are made, in case that they are wanted again."""


@dataclass(frozen=True)
class Prompts:
    """What to ask a model for, one for each video, with the label of what that shows ("" for none), and where they are from."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    source: str

    def card(self) -> dict[str, Any]:
        """For the card of figures about these videos."""
        checksum = hashlib.sha256("\n".join(self.texts).encode()).hexdigest()
        return {"from": self.source, "different": len(set(self.texts)), "sha256": checksum}


def prompts_of(real: Footage | RealStatistics, count: int, *, classes: Sequence[str] = ()) -> Prompts:
    """The captions of so many real videos, evenly spaced, or in turn where there are fewer; for a model of classes their labels.

    A video without a caption is called by its label. Raises `EvaluationError` naming the first that has neither.
    """
    if isinstance(real, RealStatistics):
        source, total = f"the stored statistics of {real.card['real']['from']}", len(real.described)
        if total == 0:
            raise EvaluationError(f"{source} tell no captions: give prompts in a file of one per line (--prompts)")
        describe = lambda row: (f"clip {row}", *real.described[row])  # noqa: E731
    else:
        source, total = real.description, len(real)
        describe = lambda row: (real.videos[row].name, *real.videos[row].describe())  # noqa: E731
    rows = np.arange(count) * total // count if count <= total else np.arange(count) % total
    found: dict[int, tuple[str, str]] = {}
    for row in sorted(set(rows.tolist())):
        name, caption, label = describe(row)
        text = label if classes else caption or label
        if not text:
            raise EvaluationError(
                f"{name} of {source} has no {'label' if classes else 'caption'} to make a video of: "
                "give prompts in a file of one per line (--prompts)"
            )
        found[row] = text, label
    texts, labels = zip(*(found[row] for row in rows.tolist()))
    return Prompts(texts, labels, f"{'labels' if classes else 'captions'} of {source}")


def footage_of_samples(
    sample: SampleFn,
    prompts: Prompts,
    sampled: Mapping[str, Any],
    share: Share = ALONE,
    batch: int = BATCH,
) -> Footage:
    """One video for every prompt, of which each process makes its share, and others where it is asked for them; `sampled` is all that they
    depend on, as plain JSON values."""
    made = _Made(sample, [range(start, len(prompts.texts), share.count) for start in range(share.count)], batch)

    def read(row: int, span: int | None, choose: Choose) -> np.ndarray:
        return made(row)[:span]

    videos = [
        Video(f"sample {row}", partial(read, row), partial(lambda *described: described, text, label))
        for row, (text, label) in enumerate(zip(prompts.texts, prompts.labels))
    ]
    checksum = hashlib.sha256(json.dumps(sampled, sort_keys=True).encode()).hexdigest()
    return Footage(f"{len(videos)} samples", videos, lambda: checksum)


class _Made:
    """The videos of all shares, made by the batch of one share; the latest batches are kept, as many as `MOST_BYTES` hold."""

    def __init__(self, sample: SampleFn, shares: Sequence[range], batch: int):
        self._sample, self._shares, self._batch = sample, shares, batch
        self._kept: dict[range, np.ndarray] = {}
        self._one_at_a_time = threading.Lock()

    def __call__(self, row: int) -> UInt8[np.ndarray, "t h w 3"]:
        share = self._shares[row % len(self._shares)]
        number, place = divmod(share.index(row), self._batch)
        rows = share[number * self._batch :][: self._batch]
        with self._one_at_a_time:
            if rows not in self._kept:
                self._kept[rows] = self._make(rows)
                while len(self._kept) > 1 and sum(videos.nbytes for videos in self._kept.values()) > MOST_BYTES:
                    del self._kept[next(iter(self._kept))]
            return self._kept[rows][place]

    def _make(self, rows: range) -> np.ndarray:
        videos = self._sample(rows)
        if len(videos) != len(rows):
            raise MediaError(f"{len(rows)} videos were asked for and {len(videos)} made")
        return videos
