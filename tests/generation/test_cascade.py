"""A base model and one that makes its videos larger, both tiny, of the real classes."""

import dataclasses

import jax
import numpy as np
import pytest

from walt import sample
from walt.data import media
from walt.diffusion import conditions, process
from walt.generation.bundle import Component, write_bundle
from walt.generation.cascade import Cascade
from walt.generation.fit import VideoSize
from walt.generation.pipeline import GenerationError, Pipeline
from walt.training.module import Functional
from walt.transformer import Transformer

BALL, BOX = "a red ball moves left", "a blue box moves right"


@pytest.fixture(scope="module")
def bundles(tiny, tiny_bundle):
    """Of 16x16, and from there to 32x32."""
    config = dataclasses.replace(
        tiny.transformer,
        latent_shape=(2, 4, 4),
        in_channels=6,
        patch=2,
        low_resolution=2,
        scalars=("low_resolution_time",),
    )
    model = Functional(lambda rngs: Transformer(config, rngs))
    rng = np.random.default_rng(4)
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), model.abstract_params)
    part = Component(dataclasses.asdict(config), params)
    return [tiny_bundle, dataclasses.replace(tiny_bundle, components={**tiny_bundle.components, "transformer": part})]


@pytest.fixture(scope="module")
def stages(bundles):
    return [Pipeline(bundle) for bundle in bundles]


def test_each_stage_makes_the_video_of_the_one_before_it_larger(stages):
    videos = Cascade(stages).generate([BALL, BOX], seed=4)
    assert videos.shape == (2, 5, 32, 32, 3) and Cascade(stages).fps == 12.5
    base = stages[0].generate([BALL, BOX], seed=4)
    larger = stages[1].generate([BALL, BOX], seed=4 + 0x9E3779B9, low_resolution=base)
    np.testing.assert_array_equal(videos, larger)
    np.testing.assert_array_equal(Cascade(stages[:1]).generate([BALL, BOX], seed=4), base)
    assert (stages[1].low_size, stages[1].video_size) == (VideoSize(5, 16, 16), VideoSize(5, 32, 32))


def test_what_is_made_depends_on_the_low_resolution(stages):
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    make = lambda video, **more: stages[1].generate(BALL, low_resolution=video, seed=1, **more).astype(int)  # noqa: E731
    assert np.abs(make(one) - make(other)).mean() > 0.01  # of the same noise
    np.testing.assert_array_equal(make(one), make(one))
    # Also in batches that do not divide the number of prompts, and only the size asked for.
    three = stages[1].generate([BALL] * 3, low_resolution=np.stack([one, other, one]), batch_size=2, num_frames=1)
    assert three.shape == (3, 1, 32, 32, 3)


def test_low_resolution_is_noised_with_a_key_of_its_own():
    schedule, keys = process.make_tables("linear", True), jax.random.split(jax.random.key(0), 3)
    latents = np.ones((3, 2, 4, 4, 2), np.float32)
    given = conditions.given_low_resolution(schedule, latents, 0.1, keys)
    assert given.scalars is not None and given.low_resolution is not None
    np.testing.assert_allclose(given.scalars["low_resolution_time"], 0.1)
    noise = (given.low_resolution - schedule.alpha(0.1)) / schedule.sigma(0.1)
    assert abs(float(noise.mean())) < 0.3 and 0.8 < float(noise.std()) < 1.2
    again = conditions.given_low_resolution(schedule, latents[1:], 0.1, keys[1:])
    np.testing.assert_allclose(again.low_resolution, given.low_resolution[1:], rtol=1e-6)


def test_stages_that_do_not_fit_are_refused(stages, bundles):
    with pytest.raises(
        GenerationError, match=r"model 2 .* makes 5 frames of 16x16 larger, but model 1 .* makes 5 frames of 32x32"
    ):
        Cascade([*stages, stages[1]])
    with pytest.raises(GenerationError, match="model 1 of the cascade generates 5 frames of 16x16 from nothing"):
        Cascade([stages[0], stages[0]])
    with pytest.raises(GenerationError, match="at least one model"):
        Cascade([])
    with pytest.raises(GenerationError, match="an autoencoder alone"):
        parts = {"autoencoder": bundles[0].components["autoencoder"]}
        Cascade([Pipeline(dataclasses.replace(bundles[0], components=parts))]).generate(BALL)
    with pytest.raises(GenerationError, match="makes 5 frames of 16x16 into 5 frames of 32x32: give low_resolution"):
        stages[1].generate(BALL)
    with pytest.raises(GenerationError, match=r"for each of 1 prompts, got \[1, 5, 8, 8, 3\]"):
        stages[1].generate(BALL, low_resolution=np.zeros((5, 8, 8, 3), np.uint8))
    with pytest.raises(GenerationError, match="low_resolution is for a super-resolution model"):
        stages[0].generate(BALL, low_resolution=np.zeros((5, 16, 16, 3), np.uint8))


def test_a_size_that_the_last_stage_cannot_make_is_refused_before_the_first_one_works(stages, monkeypatch):
    monkeypatch.setattr(stages[0], "_batches", lambda *_: pytest.fail("the base has worked in vain"))
    with pytest.raises(GenerationError, match="at most 5 frames of 32x32"):
        Cascade(stages).generate(BALL, height=64)


def test_one_command_runs_the_chain(bundles, tmp_path, capsys):
    for number, bundle in enumerate(bundles):
        write_bundle(bundle, tmp_path / str(number))
    sample.main(
        [
            "walt sample",
            f"--checkpoint={tmp_path / '0'}",
            f"--cascade={tmp_path / '1'}",
            f"--prompt={BALL}",
            f"--output={tmp_path / 'out.gif'}",
            "--scale=1",
        ]
    )
    assert media.read_video(tmp_path / "out.gif")[0].shape == (5, 32, 32, 3)
    printed = capsys.readouterr().out
    assert printed.count("generates 5 frames of") == 2 and "4+4 steps, guidance 2+2, seed 0" in printed
