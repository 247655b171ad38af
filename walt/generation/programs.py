"""The compiled programs behind a pipeline: pure functions of configs (static) and weights (arguments).

Two pipelines of equal configs share a program; another prompt, seed or strength of guidance needs no new one.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, UInt8, UInt32

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import Autoencoder, to_float, to_uint8
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.denoiser import Denoiser
from walt.diffusion.text_to_latents import Prompts, text_to_latents
from walt.generation.given import Given
from walt.text.config import TextEncoderConfig
from walt.training.module import Functional
from walt.transformer.config import TransformerConfig

Weights = tuple[dict[str, Any], dict[str, Any]]  # parameters, other variables


class GeneratorConfig(NamedTuple):
    """What the second stage consists of."""

    transformer: TransformerConfig
    text: TextEncoderConfig | None
    diffusion: DiffusionConfig


@functools.lru_cache(maxsize=8)
def autoencoder(config: AutoencoderConfig) -> Functional[Autoencoder]:
    """The first stage without its weights."""
    return Functional(lambda rngs: Autoencoder(config, rngs))


@functools.lru_cache(maxsize=8)
def denoiser(transformer: TransformerConfig, text: TextEncoderConfig | None) -> Functional[Denoiser]:
    """The second stage without its weights."""
    return Functional(lambda rngs: Denoiser(transformer, text, rngs))


@jax.jit
def row_keys(seed: UInt32[Array, ""], rows: Int[Array, " b"]) -> jax.Array:
    """The random key of every video of a call, by its number."""
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(rows)


@functools.partial(jax.jit, static_argnums=0)
def encode(config: AutoencoderConfig, weights: Weights, video: UInt8[Array, "b t h w 3"]) -> Float[Array, "b f i j c"]:
    """Normalised latents."""
    return autoencoder(config).bind(*weights).encode(to_float(video))


@functools.partial(jax.jit, static_argnums=0)
def decode(
    config: AutoencoderConfig, weights: Weights, latents: Float[Array, "b f i j c"]
) -> UInt8[Array, "b t h w 3"]:
    """Pixels of normalised latents."""
    return to_uint8(autoencoder(config).bind(*weights).decode(latents))


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=("frames", "circular"))
def sample_latents(
    config: GeneratorConfig,
    sampler: SamplerConfig,
    weights: Weights,
    prompts: Prompts | None,
    keys: jax.Array,
    strength: Float[Array, ""] | None,
    negative: Prompts | None,
    given: Given,
    frames: int | None = None,
    circular: bool = False,
) -> Float[Array, "b f i j c"]:
    """Latents of prompts and of what else is given; without `strength`, the sampler's own guidance is compiled in. `frames` other than those of the
    config are of a still (1), or of a ring of any length (`circular`)."""
    model = denoiser(config.transformer, config.text).bind(*weights)
    length, *sides = config.transformer.latent_shape
    shape = (frames or length, *sides, config.transformer.out_channels)
    conditions = given.conditions(config.diffusion.make_schedule(shape), shape, sampler.low_resolution_time, keys)
    return text_to_latents(
        model,
        prompts,
        keys,
        shape,
        config.diffusion,
        sampler,
        strength=strength,
        negative=negative,
        given=conditions,
        circular=circular,
    )
