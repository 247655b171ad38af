"""The bundle that comes with the package, measured on footage recorded here."""

from pathlib import Path

import numpy as np
import pytest

import walt
from walt.data.recipes import atari
from walt.evaluation import evaluate_clips
from walt.evaluation.source import read_clips
from walt.experiment.sampling import reconstruct, sample_labels
from walt.generation.sources import SHIPPED, shipped_bundles


@pytest.fixture(scope="module")
def pipeline():
    return walt.load("mini")


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Clips that no training saw: the emulator seeds of the recipe's seed 100."""
    pytest.importorskip("ale_py", reason="the atari recipe needs the extra `demo`")
    output = tmp_path_factory.mktemp("footage") / "data"
    atari.prepare(atari.AtariConfig(output=str(output), clips=16, heldout=16, seed=100))
    return output


def test_is_small_enough_and_has_a_card(pipeline):
    assert "mini" in shipped_bundles()
    size = sum(file.stat().st_size for file in Path(SHIPPED / "mini").iterdir())
    assert size <= 25e6
    assert {"data", "training", "commit", "figures"} <= set(pipeline.card) and pipeline.licences


def test_reconstructs_every_game_as_its_card_says(pipeline, footage):
    heldout = read_clips(footage, "heldout")
    error = np.square(reconstruct(pipeline, heldout).astype(float) - heldout.videos).mean(axis=(1, 2, 3, 4))
    by_game = [(10 * np.log10(255**2 / error[heldout.rows_of(game)])).mean() for game in heldout.label_names]
    assert np.mean(by_game) == pytest.approx(pipeline.card["figures"]["heldout_psnr"], abs=1.0)
    assert min(by_game) > 18, dict(zip(heldout.label_names, by_game, strict=True))


@pytest.mark.slow
def test_shows_what_the_prompts_name(pipeline, footage):
    heldout = read_clips(footage, "heldout")
    result = evaluate_clips(heldout, generated=sample_labels(pipeline, heldout, seeds=2))
    assert result.prompts.prompt_accuracy >= 0.8 and result.prompts.prompt_accuracy_shuffled <= 0.25


@pytest.mark.parametrize("prompt", ["a game of Freeway, the chicken moves up"])
def test_generates_the_game_of_the_prompt(pipeline, prompt):
    video = pipeline.generate(prompt, steps=6, seed=3)
    assert video.shape == (17, 64, 64, 3) and video.dtype == np.uint8
    road, score = video[:, 20:44, 8:56].reshape(-1, 3).mean(0), video[:, 62:, :].mean()
    assert np.ptp(road) < 12 and 110 < road.mean() < 190  # the grey road
    assert score < 60  # the black border below it


@pytest.mark.slow
def test_an_edit_is_the_less_faithful_the_stronger_it_is(pipeline):
    clip = pipeline.generate("a game of Freeway", steps=10)
    edits = [pipeline.edit(clip, "a game of Boxing", strength=strength, steps=10) for strength in (0, 0.2, 0.5, 1)]
    errors = [np.square(made.astype(float) - pipeline.reconstruct(clip)).mean() for made in edits]
    assert errors[0] < 0.01 and errors == sorted(errors), errors  # rounding alone at strength 0
