"""What is given beside prompts: known first frames come back, numbers are told, and a model without prompts needs none."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from walt.config import to_config_dict, to_json
from walt.diffusion.denoiser import Denoiser
from walt.generation.bundle import Component
from walt.generation.pipeline import GenerationError, Pipeline
from walt.training.module import Functional


def json_values(config):
    return json.loads(to_json(to_config_dict(config)))


@pytest.fixture(scope="module")
def goes_on(tiny, tiny_bundle):
    """A model that reads nothing, knows one latent frame or none, and is told the frame rate."""
    transformer = dataclasses.replace(tiny.transformer, in_channels=7, canvas=True, scalars=("fps",), text_width=None)
    denoiser = Functional(lambda rngs: Denoiser(transformer, None, rngs))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), denoiser.abstract_params)
    components = {
        "autoencoder": tiny_bundle.components["autoencoder"],
        "transformer": Component(json_values(transformer), params["transformer"]),
    }
    diffusion = dataclasses.replace(tiny.diffusion, known_frames=(1,))
    sampler = dataclasses.replace(tiny.sampler, guidance=1.0, known_guidance=2.0)
    return Pipeline(
        dataclasses.replace(
            tiny_bundle,
            components=components,
            tokenizer=None,
            diffusion=json_values(diffusion),
            sampler=json_values(sampler),
        )
    )


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3), np.uint8)


def test_known_frames_come_back_as_the_autoencoder_gives_them(goes_on, frames):
    videos = goes_on.generate(None, first_frames=frames)
    assert videos.shape == (2, 5, 16, 16, 3)
    latents = goes_on.encode(frames)
    np.testing.assert_allclose(goes_on.encode(videos[:, :1]).shape, latents.shape)
    np.testing.assert_allclose(videos[:, :1].astype(int), goes_on.reconstruct(frames), atol=1)
    one = goes_on.generate(None, first_frames=frames[0])
    np.testing.assert_allclose(one.astype(int), videos[0], atol=1)
    assert np.abs(videos.astype(int) - goes_on.generate(None, first_frames=frames[::-1].copy())).max() > 1


def test_the_frame_rate_is_told(goes_on, frames):
    told, other, untold = (goes_on.generate(None, first_frames=frames, fps=fps) for fps in (8, 24, None))
    assert np.any(told != other) and np.any(told != untold)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a game"}, "reads no prompt: give None"),
        ({}, "reads no prompt: give None, and the frames"),
        (
            {"first_frames": np.zeros((2, 3, 16, 16, 3), np.uint8)},
            r"first_frames must hold 1 frames of 16x16 for each of 2",
        ),
        ({"first_frames": np.zeros((1, 16, 16, 3), np.uint8), "motion": 1.0}, "motion was given, but this model"),
        ({"first_frames": np.zeros((1, 16, 16, 3), np.uint8), "fps": -1.0}, "fps must be a number, 0 or more"),
        ({"first_frames": np.zeros((1, 16, 16, 3))}, "must be a uint8 array"),
        (
            {"first_frames": np.zeros((1, 16, 16, 3), np.uint8), "negative_prompt": "x"},
            "for a model that reads prompts",
        ),
    ],
)
def test_what_does_not_fit_is_named(goes_on, options, message):
    with pytest.raises(GenerationError, match=message):
        goes_on.generate(**{"prompt": None, **options})


def test_a_model_that_was_not_trained_so_refuses(tiny_bundle, frames):
    with pytest.raises(GenerationError, match="first_frames is for a model that was trained to go on"):
        Pipeline(tiny_bundle).generate(["a", "b"], first_frames=frames)
    with pytest.raises(GenerationError, match="fps was given, but this model was not trained to be told it"):
        Pipeline(tiny_bundle).generate("a", fps=8)
