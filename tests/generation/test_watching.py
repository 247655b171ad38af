"""Sampling in segments."""

import numpy as np
import pytest

from walt.generation import programs
from walt.generation.pipeline import Pipeline
from walt.generation.watching import watcher, watching

BALL = "a red ball moves left"


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    return Pipeline(tiny_bundle)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "flow_heun", "reuse": 0.5},
        *(
            pytest.param(options, marks=pytest.mark.slow)
            for options in ({"solver": "ddpm"}, {"solver": "dpmpp_2m"}, {"guidance": 1.0})
        ),
    ],
)
def test_a_watched_video_is_the_same_to_the_bit(pipeline, options):
    options = {"seed": 3, "steps": 7, **options}
    expected = pipeline.generate([BALL, "a box"], **options)
    for every in (1, 3, 100):
        seen = []
        with watching(seen.append, every):
            np.testing.assert_array_equal(pipeline.generate([BALL, "a box"], **options), expected)
        steps = [*range(every, 7, every), 7]
        assert [(moment.step, moment.steps) for moment in seen] == [(step, 7) for step in steps]


def test_a_preview_is_what_the_model_guesses_by_then(pipeline):
    previews = []
    with watching(lambda moment: previews.append(moment.preview()), every=2):
        video = pipeline.generate(BALL, seed=3, steps=6)
    assert all(preview.shape[1:] == video.shape and preview.dtype == np.uint8 for preview in previews)
    errors = [np.abs(preview[0].astype(float) - video).mean() for preview in previews]
    assert errors[0] > errors[-1]


def test_what_the_watcher_raises_ends_the_sampling(pipeline):
    class Enough(Exception):
        pass

    seen = []

    def stop(moment):
        seen.append(moment.step)
        raise Enough

    with pytest.raises(Enough), watching(stop, every=2):
        pipeline.generate(BALL, steps=6)
    assert seen == [2] and watcher() is None


def test_lengths_of_segments_need_no_programs_of_their_own(pipeline):
    with watching(lambda moment: None, every=2):
        pipeline.generate(BALL, steps=5)
    compiled = programs.sample_some._cache_size()
    for every in (1, 3, 5):
        with watching(lambda moment: None, every=every):
            pipeline.generate(BALL, steps=5, seed=every)
    assert programs.sample_some._cache_size() == compiled
    with pytest.raises(ValueError, match="at least 1 step"), watching(lambda moment: None, every=0):
        pass
