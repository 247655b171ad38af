"""A model small enough to compile in a moment, of the real classes, with random weights that are nowhere zero."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import Autoencoder
from walt.config import to_config_dict, to_json
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.denoiser import Denoiser
from walt.generation.bundle import Bundle, Component
from walt.text.config import TextEncoderConfig
from walt.text.tokenizer import Tokenizer
from walt.training.module import Functional
from walt.transformer.config import TransformerConfig

CAPTIONS = ["a red ball moves left", "a blue box moves right", "the green paddle waits", "a ball and a box meet"] * 8


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Configs of the tiny model: videos of 5 frames of 16x16."""

    autoencoder: AutoencoderConfig
    transformer: TransformerConfig
    text: TextEncoderConfig
    diffusion: DiffusionConfig
    sampler: SamplerConfig
    tokenizer: bytes


def json_values(config):
    return json.loads(to_json(to_config_dict(config)))


def random_like(tree, seed):
    """Weights that make every part of a model matter: initial zeros would hide it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32), tree)


@pytest.fixture(scope="session")
def tiny():
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=48)
    return Tiny(
        autoencoder=AutoencoderConfig(
            latent_channels=2,
            base_channels=2,
            channel_multipliers=(1, 1),
            res_blocks=1,
            mid_blocks=0,
            strides=((4, 2),),
            temporal_kernels=(1, 3),
            patchify=4,
            groups=1,
        ),
        transformer=TransformerConfig(
            latent_shape=(2, 2, 2),
            in_channels=4,
            out_channels=2,
            width=8,
            depth=2,
            heads=2,
            spatial_window=(1, 2, 2),
            spacetime_window=(2, 2, 2),
            text_width=8,
        ),
        text=TextEncoderConfig(vocab_size=tokenizer.vocab_size, width=8, depth=1, heads=2, head_width=4, mlp_width=8),
        diffusion=DiffusionConfig(caption_length=16),
        sampler=SamplerConfig(steps=4, guidance=2.0),
        tokenizer=tokenizer.model_bytes,
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny):
    autoencoder = Functional(lambda rngs: Autoencoder(tiny.autoencoder, rngs))
    denoiser = Functional(lambda rngs: Denoiser(tiny.transformer, tiny.text, rngs))
    params = random_like(denoiser.abstract_params, 1)
    statistics = {"latent_mean": np.float32([0.1, -0.2]), "latent_std": np.float32([0.5, 2.0])}
    return Bundle(
        {
            "autoencoder": Component(
                json_values(tiny.autoencoder), random_like(autoencoder.abstract_params, 0), statistics
            ),
            "transformer": Component(json_values(tiny.transformer), params["transformer"]),
            "text_encoder": Component(json_values(tiny.text), params["text_encoder"]),
        },
        tokenizer=tiny.tokenizer,
        diffusion=json_values(tiny.diffusion),
        sampler=json_values(tiny.sampler),
        licences=("random weights, no rights reserved",),
        card={"fps": 12.5},
    )


def of_frames(frames, tiny, tiny_bundle, **changes):
    """The bundle of a tiny model that makes so many latent frames, four pictures each but the first."""
    changes = {"latent_shape": (frames, 2, 2), "spacetime_window": (frames, 2, 2), **changes}
    transformer = dataclasses.replace(tiny.transformer, **changes)
    abstract = Functional(lambda rngs: Denoiser(transformer, tiny.text, rngs)).abstract_params
    part = Component(json_values(transformer), random_like(abstract, 1)["transformer"])
    return dataclasses.replace(tiny_bundle, components={**tiny_bundle.components, "transformer": part})
