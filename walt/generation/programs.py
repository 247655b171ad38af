"""The compiled programs behind a pipeline: pure functions of configs (static) and weights (arguments).

Two pipelines of equal configs share a program; another prompt, seed or strength of guidance needs no new one.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import Autoencoder, to_float, to_uint8
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.denoiser import Denoiser
from walt.diffusion.samplers import Draft
from walt.diffusion.text_to_latents import Prompts, begin_latents, take_text_steps, text_to_latents
from walt.generation.given import Given
from walt.text.config import TextEncoderConfig
from walt.training.module import Functional
from walt.transformer.config import TransformerConfig

Weights = tuple[dict[str, Any], dict[str, Any]]  # parameters, other variables


class GeneratorConfig(NamedTuple):
    """What the second stage consists of, and what it makes.

    Attributes:
      frames: latent frames of a video; None for as many as the transformer has.
      circular: whether they are a ring; then there may be any number of them.
    """

    transformer: TransformerConfig
    text: TextEncoderConfig | None
    diffusion: DiffusionConfig
    frames: int | None = None
    circular: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Latents of one video."""
        frames, *sides = self.transformer.latent_shape
        return (self.frames or frames, *sides, self.transformer.out_channels)


def keep_compiled() -> None:
    """Has JAX keep compiled programs in the user's cache folder, so that another process need not compile them again; unless it was told where to
    (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "walt" / "compiled"))


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


@functools.partial(jax.jit, static_argnums=0)
def embed(
    config: GeneratorConfig,
    weights: Weights,
    tokens: Int[Array, "b l"],
    mask: Bool[Array, "b l"],
    emphasis: Float[Array, "b l"],
) -> Float[Array, "b l d"]:
    """Captions through the text encoder, with a weight for every token."""
    model = denoiser(config.transformer, config.text).bind(*weights)
    return model.emphasise(model.embed_text(tokens[:, None], mask[:, None])[:, 0], emphasis)


# Arguments are kept, used or not, so that what is said of its memory counts all weights that lie there meanwhile.
@functools.partial(jax.jit, static_argnums=(0, 1), keep_unused=True)
def sample_latents(
    config: GeneratorConfig,
    sampler: SamplerConfig,
    weights: Weights,
    prompts: Prompts | None,
    keys: jax.Array,
    strength: Float[Array, ""] | None,
    negative: Prompts | None,
    given: Given,
) -> Float[Array, "b f i j c"]:
    """Latents of prompts and of what else is given; without `strength`, the sampler's own guidance is compiled in."""
    model, shape, options = _prepared(config, sampler, weights, keys, strength, negative, given)
    return text_to_latents(model, prompts, keys, shape, config.diffusion, sampler, **options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin_sampling(
    config: GeneratorConfig,
    sampler: SamplerConfig,
    weights: Weights,
    prompts: Prompts | None,
    keys: jax.Array,
    strength: Float[Array, ""] | None,
    negative: Prompts | None,
    given: Given,
) -> Draft:
    """What `sample_some` starts from."""
    model, shape, options = _prepared(config, sampler, weights, keys, strength, negative, given)
    return begin_latents(model, prompts, keys, shape, config.diffusion, sampler, **options)


@functools.partial(jax.jit, static_argnums=(0, 1))
def sample_some(
    config: GeneratorConfig,
    sampler: SamplerConfig,
    weights: Weights,
    prompts: Prompts | None,
    keys: jax.Array,
    strength: Float[Array, ""] | None,
    negative: Prompts | None,
    given: Given,
    draft: Draft,
    span: tuple[Int[Array, ""], Int[Array, ""]],
) -> Draft:
    """Some of the steps that `sample_latents` takes in one run; which they are is no part of the program."""
    model, _, options = _prepared(config, sampler, weights, keys, strength, negative, given)
    return take_text_steps(model, prompts, keys, draft, span, config.diffusion, sampler, **options)


def _prepared(
    config: GeneratorConfig,
    sampler: SamplerConfig,
    weights: Weights,
    keys: jax.Array,
    strength: Float[Array, ""] | None,
    negative: Prompts | None,
    given: Given,
) -> tuple[Denoiser, tuple[int, ...], dict[str, Any]]:
    """The model with its weights, the shape of a video's latents, and what else `take_text_steps` is told."""
    model, shape = denoiser(config.transformer, config.text).bind(*weights), config.shape
    schedule = config.diffusion.make_schedule(shape)
    conditions = given.conditions(schedule, shape, sampler.low_resolution_time, keys)
    options = {"strength": strength, "negative": negative, "given": conditions, "circular": config.circular}
    return model, shape, options
