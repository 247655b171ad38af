import dataclasses
import json

import numpy as np
import pytest

from walt.evaluation.bars import atari_mini_bars
from walt.evaluation.clips import Clips
from walt.evaluation.nearest import nearest_clips
from walt.evaluation.result import EvaluationResult, evaluate_clips


@pytest.fixture
def evaluated(footage):
    """Real clips as samples and slightly noisy copies as reconstructions: everything is as good as it can be."""
    heldout, training, generated = footage(8, seed=1), footage(10, seed=2), footage(4, seed=3)
    noise = np.random.default_rng(0).integers(-4, 5, heldout.videos.shape)
    reconstructions = np.clip(heldout.videos + noise, 0, 255).astype(np.uint8)
    return evaluate_clips(heldout, reconstructions=reconstructions, generated=generated, training=[training])


def test_the_json_form_is_plain_and_complete(evaluated):
    form = json.loads(evaluated.to_json())
    assert form == evaluated.to_dict()
    needed = {"heldout_psnr", "psnr_moving", "psnr_mean_frame", "psnr_first_frame_repeated", "prompt_accuracy"}
    needed |= {
        "prompt_accuracy_shuffled",
        "prompt_accuracy_chance",
        "motion_ratio",
        "diversity_ratio",
        "nearest_distance",
    }
    assert needed <= set(form) and all(isinstance(form[name], float) for name in needed)
    assert (form["motion_labels_within"], form["motion_labels"]) == (4, 4)
    assert set(form["per_label"]) == {"amber", "blue", "coral", "dusk"}
    assert form["per_label"]["blue"]["prompt_accuracy"] == 1.0
    assert form["per_label"]["blue"]["motion_real"] > 0 and form["per_label"]["blue"]["diversity_real"] > 0
    assert len(form["nearest"]) == 16
    assert form["nearest"][0]["label"] == "amber" and form["nearest"][0]["id"].startswith("amber/")
    assert form["protocol"]["name"] == "atari-mini" and form["protocol"]["heldout_clips"] == 32
    assert set(form["protocol"]["definitions"]) <= set(form)


def test_perfect_copies_and_undefined_figures_are_valid_json(footage):
    heldout = footage(4)
    still = Clips(np.repeat(heldout.videos[:, :1], 5, axis=1), heldout.labels)
    result = evaluate_clips(still, reconstructions=still.videos, generated=still, training=[still])
    form = json.loads(result.to_json())
    assert form["heldout_psnr"] == 100.0 and form["psnr_moving"] is None and form["motion_ratio"] is None
    assert form["nearest_distance"] == form["nearest_distance_heldout"] == 0.0


def test_parts_that_were_not_given_are_absent(footage):
    heldout = footage(4)
    alone = evaluate_clips(heldout, reconstructions=heldout.videos)
    assert "prompt_accuracy" not in alone.headline() and alone.headline()["psnr_mean_frame"] is None
    samples = evaluate_clips(heldout, generated=heldout)
    assert "heldout_psnr" not in samples.headline() and "nearest_distance" not in samples.headline()
    one_game = footage(4, games=("amber",))
    assert evaluate_clips(one_game, generated=one_game).prompts is None


def test_nearest_of_samples_and_of_heldout_clips_are_kept_apart(footage):
    training, heldout = footage(5, seed=1), footage(5, seed=2)
    result = evaluate_clips(heldout, generated=training, training=training.chunks(7))
    assert result.nearest.distances.tolist() == [0.0] * 20  # samples copied from the training set
    assert result.nearest_heldout_distance == nearest_clips(heldout, [training]).mean_distance > 0
    assert result.nearest.clips.labels == training.labels


def test_flicker_of_the_first_stage_shows_in_its_own_motion(footage):
    heldout = footage(4)
    flicker = heldout.videos.copy()
    flicker[:, ::2] += 5
    result = evaluate_clips(heldout, reconstructions=flicker)
    assert result.reconstruction_motion.motion_ratio > 1.1
    assert result.per_label()["blue"]["reconstruction_motion_ratio"] > 1.1
    assert evaluate_clips(heldout, reconstructions=heldout.videos).reconstruction_motion.motion_ratio == 1.0


def test_unlike_shapes_and_unknown_protocols_are_refused(footage):
    with pytest.raises(
        ValueError, match=r"generated clips are \[6, 16, 16, 3\] but held-out clips are \[5, 16, 16, 3\]"
    ):
        evaluate_clips(footage(2), generated=footage(2, frames=6))
    with pytest.raises(ValueError, match="unknown protocol 'ucf101': there is atari-mini and"):
        evaluate_clips(footage(2), protocol="ucf101")


def by_metric(result: EvaluationResult) -> dict:
    return {bar.metric: bar for bar in atari_mini_bars(result)}


def test_everything_good_passes_every_bar(evaluated):
    bars = by_metric(evaluated)
    assert list(bars) == [
        "heldout_psnr",
        "psnr_moving_gain",
        "prompt_accuracy",
        "prompt_accuracy_shuffled",
        "motion_ratio",
        "diversity_ratio",
    ]
    assert all(bar.passed is True for bar in bars.values())
    assert bars["motion_ratio"].shown == "4 of 4" and "≥ 3 of 4" in bars["motion_ratio"].required


@pytest.mark.parametrize(
    ("part", "changes", "metric", "passed"),
    [
        ("reconstruction", {"heldout_psnr": 26.99}, "heldout_psnr", False),
        ("reconstruction", {"heldout_psnr": 27.0}, "heldout_psnr", True),
        (
            "reconstruction",
            {"psnr_moving": 20.0, "psnr_mean_frame": 12.0, "psnr_first_frame_repeated": 18.5},
            "psnr_moving_gain",
            False,
        ),
        (
            "reconstruction",
            {"psnr_moving": 20.0, "psnr_mean_frame": 18.5, "psnr_first_frame_repeated": 12.0},
            "psnr_moving_gain",
            False,
        ),
        (
            "reconstruction",
            {"psnr_moving": 20.5, "psnr_mean_frame": 18.5, "psnr_first_frame_repeated": 12.0},
            "psnr_moving_gain",
            True,
        ),
        ("reconstruction", {"psnr_mean_frame": None}, "psnr_moving_gain", None),
        ("prompts", {"prompt_accuracy": 0.79}, "prompt_accuracy", False),
        ("prompts", {"prompt_accuracy": 0.80}, "prompt_accuracy", True),
        ("prompts", {"prompt_accuracy_shuffled": 0.26}, "prompt_accuracy_shuffled", False),
        ("prompts", {"prompt_accuracy_shuffled": 0.25}, "prompt_accuracy_shuffled", True),
        ("prompts", {"prompt_accuracy_shuffled": None}, "prompt_accuracy_shuffled", None),
        ("motion", {"within": 5, "labels": 8}, "motion_ratio", False),
        ("motion", {"within": 6, "labels": 8}, "motion_ratio", True),
        ("diversity", {"diversity_ratio": 0.24}, "diversity_ratio", False),
        ("diversity", {"diversity_ratio": 0.25}, "diversity_ratio", True),
    ],
)
def test_each_bar_cuts_where_it_says(evaluated, part, changes, metric, passed):
    changed = dataclasses.replace(evaluated, **{part: dataclasses.replace(getattr(evaluated, part), **changes)})
    bars = by_metric(changed)
    assert bars[metric].passed is passed
    assert all(bar.passed for name, bar in bars.items() if name != metric)
