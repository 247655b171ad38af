"""Synthetic footage with known answers: each "game" has its own scenery and a square that moves across it."""

import gc

import numpy as np
import pytest

from walt.evaluation.clips import Clips

GAMES = ("amber", "blue", "coral", "dusk")


def make_footage(clips_per_game: int, *, seed: int = 0, games=GAMES, frames: int = 5, side: int = 16) -> Clips:
    """Clips whose background is constant per game and whose bright 3x3 square moves one pixel per frame from a random place."""
    random = np.random.default_rng(seed)
    videos, labels = [], []
    for number, game in enumerate(games):
        scenery = np.random.default_rng(1000 + number).integers(0, 160, (side, side, 3), dtype=np.uint8)
        for _ in range(clips_per_game):
            video = np.repeat(scenery[None], frames, axis=0)
            row, column = random.integers(0, side - 3), random.integers(0, side - 3 - frames)
            for t in range(frames):
                video[t, row : row + 3, column + t : column + t + 3] = 250
            videos.append(video)
            labels.append(game)
    ids = [f"{label}/{index}" for index, label in enumerate(labels)]
    return Clips(np.stack(videos), tuple(labels), tuple(f"a game of {label}" for label in labels), tuple(ids))


@pytest.fixture
def footage():
    return make_footage


@pytest.fixture(autouse=True)
def one_clip_a_device(monkeypatch):
    """Frames of 224x224 in float32 on eight devices that are one machine: four clips on each would take gigabytes."""
    monkeypatch.setattr("walt.evaluation.features.PER_DEVICE", 1)
    yield
    gc.collect()  # networks, each with its weights on all of them
