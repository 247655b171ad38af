"""What a distance reacts to: the same measurement after the generated clips were spoilt in known ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from walt.evaluation.footage import Footage

Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]
NOISE = 25.0


def _shuffled(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return frames[random.permutation(len(frames))]


def _frozen(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.repeat(frames[:1], len(frames), axis=0)


def _noisy(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    noisy = np.clip(frames + random.normal(0, NOISE, frames.shape), 0, 255)
    return np.rint(noisy).astype(np.uint8) if frames.dtype == np.uint8 else noisy.astype(frames.dtype)


SPOILT: Mapping[str, Spoil] = {
    "frames shuffled": _shuffled,
    "first frame frozen": _frozen,
    f"noise of {NOISE:g} / 255": _noisy,
}

OF_MOTION = ("frames shuffled", "first frame frozen")
"""These leave a still as it is."""


def spoilt(footage: Footage, how: str) -> Footage:
    """The same clips after `SPOILT[how]`; the same spoilt clips every time."""

    def spoil(row: int, frames: np.ndarray) -> np.ndarray:
        return SPOILT[how](frames, np.random.default_rng(row))

    videos = [replace(video, change=partial(spoil, row)) for row, video in enumerate(footage.videos)]
    return Footage(f"{footage.description}, {how}", videos, lambda: f"{footage.fingerprint()} {how}")
