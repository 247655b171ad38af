"""The bundle that comes with the package."""

from pathlib import Path

import numpy as np
import pytest

import walt
from walt.generation.sources import SHIPPED, shipped_bundles


def test_is_small_enough_and_has_a_card():
    assert "mini" in shipped_bundles()
    size = sum(file.stat().st_size for file in Path(SHIPPED / "mini").iterdir())
    assert size <= 25e6
    pipeline = walt.load("mini")
    card = pipeline.card
    assert {"data", "training", "commit", "figures"} <= set(card) and pipeline.licences
    assert card["figures"]["heldout_psnr"] >= 27 and card["figures"]["prompt_accuracy"] >= 0.8


@pytest.mark.parametrize("prompt", ["a game of Freeway, the chicken moves up"])
def test_generates_the_game_of_the_prompt(prompt):
    video = walt.load("mini").generate(prompt, steps=6, seed=3)
    assert video.shape == (17, 64, 64, 3) and video.dtype == np.uint8
    road, score = video[:, 20:44, 8:56].reshape(-1, 3).mean(0), video[:, 62:, :].mean()
    assert np.ptp(road) < 12 and 110 < road.mean() < 190  # the grey road
    assert score < 60  # the black border below it
