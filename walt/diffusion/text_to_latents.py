"""From captions to latents: the one path by which the pipeline and the evaluators of a training run sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from walt.diffusion import guidance
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.denoiser import Denoiser, TextCondition
from walt.diffusion.process import network_inputs
from walt.diffusion.samplers import sample

Tokens = tuple[Int[Array, "b l"], Bool[Array, "b l"]]


def text_to_latents(
    denoiser: Denoiser,
    captions: Tokens,
    keys: jax.Array,
    shape: tuple[int, ...],
    diffusion: DiffusionConfig,
    sampler: SamplerConfig,
    *,
    strength: Float[Array, ""] | float | None = None,
    negative: Tokens | None = None,
) -> Float[Array, "b f h w c"]:
    """One video's latents of `shape` (F, h, w, c) per caption.

    Args:
      denoiser: bound to its parameters.
      captions: (token ids, mask), one row per video.
      keys: one random key per video; a video depends on its own key and caption only.
      shape: latents of one video.
      diffusion: what the denoiser was trained with.
      sampler: steps, spacing, guidance.
      strength: replaces `sampler.guidance`; may be a traced scalar, so that one compiled program serves every strength.
        A Python number 1 skips the unconditional branch, and with it half of the work.
      negative: (token ids, mask) to steer away from, in place of the learned null text.
    """
    strength = sampler.guidance if strength is None else strength
    schedule = diffusion.make_schedule(shape)

    def denoise(x_t: Array, t: Array, previous_x0: Array, text: TextCondition) -> Array:
        seen, time = network_inputs(schedule, x_t, t)
        return denoiser(seen, time, previous_x0, is_image=jnp.zeros(x_t.shape[0], bool), text=text)

    conditional = _condition(denoiser, captions, shape[0], drop=False)
    if isinstance(strength, (int, float)) and strength == 1:
        step = guidance.unguided(denoise, conditional)
    else:
        null = _condition(denoiser, captions if negative is None else negative, shape[0], drop=negative is None)
        scale = guidance.scale_over_time(sampler, strength)
        step = guidance.guided(denoise, [null, conditional], [scale], rescale=sampler.guidance_rescale)
    return sample(step, schedule, sampler, shape, keys, prediction=diffusion.prediction)


def _condition(denoiser: Denoiser, captions: Tokens, frames: int, drop: bool) -> TextCondition:
    tokens, mask = (array[:, None] for array in captions)
    return TextCondition(
        embeddings=denoiser.embed_text(tokens, mask),
        mask=mask,
        caption_index=jnp.zeros((tokens.shape[0], frames), jnp.int32),
        drop=jnp.full((tokens.shape[0], 1), drop),
    )
