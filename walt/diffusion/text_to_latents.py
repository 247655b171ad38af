"""From prompts to latents: the one path by which the pipeline and the evaluators of a training run sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from walt.diffusion import circular as ring
from walt.diffusion import guidance
from walt.diffusion.conditions import Conditions, TextCondition
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.denoiser import Denoiser
from walt.diffusion.process import network_inputs
from walt.diffusion.samplers import Denoise, Draft, begin, take_steps
from walt.parallel.activations import constrain
from walt.transformer.reuse import Kept, Reuse


class Text(NamedTuple):
    """Captions after the text encoder, one per video, and which of their tokens are real."""

    embeddings: Float[Array, "b l d"]
    mask: Bool[Array, "b l"]


Prompts = Text | Int[Array, " b"]
"""Captions, or class labels; one per video."""


def begin_latents(
    denoiser: Denoiser,
    prompts: Prompts | None,
    keys: jax.Array,
    shape: tuple[int, ...],
    diffusion: DiffusionConfig,
    sampler: SamplerConfig,
    **options: Any,
) -> Draft:
    """What `take_text_steps` starts from, with the same arguments; `shape` is (F, h, w, c)."""
    dtype = jnp.dtype(denoiser.config.wide_dtype)
    given = options.get("given")
    draft = begin(diffusion.make_schedule(shape), sampler, shape, keys, canvas=given and given.canvas(), dtype=dtype)
    if sampler.reuse == 0:
        return draft
    denoise = _denoise(denoiser, prompts, shape, diffusion, sampler, **options)
    time = jnp.ones(draft.x.shape[:2], dtype)
    _, kept = jax.eval_shape(denoise, draft.x, time, draft.x, None)
    kept = jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), kept)
    return draft._replace(estimate=draft.estimate._replace(kept=kept))


def text_to_latents(
    denoiser: Denoiser,
    prompts: Prompts | None,
    keys: jax.Array,
    shape: tuple[int, ...],
    diffusion: DiffusionConfig,
    sampler: SamplerConfig,
    **options: Any,
) -> Float[Array, "b f h w c"]:
    """One video's latents of `shape` (F, h, w, c) per prompt; see `take_text_steps` for the arguments."""
    draft = begin_latents(denoiser, prompts, keys, shape, diffusion, sampler, **options)
    span = (0, sampler.turns)
    latents = take_text_steps(denoiser, prompts, keys, draft, span, diffusion, sampler, **options).x
    return constrain(latents, "batch", None, "context", None, None)


def take_text_steps(
    denoiser: Denoiser,
    prompts: Prompts | None,
    keys: jax.Array,
    draft: Draft,
    span: tuple[Any, Any],
    diffusion: DiffusionConfig,
    sampler: SamplerConfig,
    *,
    strength: Float[Array, ""] | float | None = None,
    negative: Prompts | None = None,
    given: Conditions | None = None,
    circular: bool = False,
) -> Draft:
    """The draft of one video per prompt after some of the sampler's turns.

    Args:
      denoiser: bound to its parameters.
      prompts: captions, or labels for a model of classes; None for a model that reads neither.
      keys: one random key per video; a video depends on its own key and conditions only.
      draft: what the steps before have left, or `begin_latents`. Videos of a single frame are stills, as those of training are.
      span: from which turn up to which, of `sampler.turns`; numbers that may be traced.
      diffusion: what the denoiser was trained with.
      sampler: steps, solver, guidance.
      strength: replaces `sampler.guidance`; may be a traced scalar, so that one compiled program serves every strength.
        A Python number 1 skips the unconditional branch, and with it half of the work.
      negative: prompts to steer away from, in place of the learned null text or of no class.
      given: all other conditions: known latents and levels, see `Canvas`, low resolution, scalars. Guidance leaves them in, except
        that `sampler.known_guidance` other than 1 adds a branch without the known latents. A denoiser without a canvas is not shown what is known; it sees it
        with the noise of the time, in place of what it would have made there.
      circular: the frames are a ring, see `circular`; there may be any number of them.
    """
    shape, options = draft.x.shape[1:], dict[str, Any](strength=strength, negative=negative, circular=circular)
    denoise = _denoise(denoiser, prompts, shape, diffusion, sampler, given=given, **options)
    schedule, canvas = diffusion.make_schedule(shape), given and given.canvas()
    return take_steps(denoise, schedule, sampler, keys, draft, span, prediction=diffusion.prediction, canvas=canvas)


def _denoise(
    denoiser: Denoiser,
    prompts: Prompts | None,
    shape: tuple[int, ...],
    diffusion: DiffusionConfig,
    sampler: SamplerConfig,
    *,
    strength: Float[Array, ""] | float | None = None,
    negative: Prompts | None = None,
    given: Conditions | None = None,
    circular: bool = False,
) -> Denoise:
    """The denoiser as steps ask it: told everything, guided, and on windows of a ring if it is one."""
    strength = sampler.guidance if strength is None else strength
    schedule, frames = diffusion.make_schedule(shape), shape[0]
    given = Conditions() if given is None else given
    canvas = given.canvas()
    shown = None if canvas is None or not denoiser.config.canvas else canvas.shown()
    given = given._replace(known=None, known_mask=None, level=None)
    if shown is not None:
        given = given._replace(known=shown[0], known_mask=shown[1])

    def denoise(x_t: Array, t: Array, previous_x0: Array, conditions: Conditions, *kept: Kept | None) -> Any:
        x_t = constrain(x_t, "batch", None, "context", None, None)
        seen, time = network_inputs(schedule, x_t, t)
        if diffusion.self_conditioning_rate == 0:  # never trained, whether or not there are channels for it
            previous_x0 = jnp.zeros_like(previous_x0)
        if canvas is not None and conditions.known_mask is not None:
            # Who is not shown what is known must not see it in the last estimate either.
            copies = x_t.shape[0] // canvas.mask.shape[0]
            hidden = (jnp.concatenate([canvas.mask] * copies) > 0) & (conditions.known_mask == 0)
            previous_x0 = jnp.where(hidden, 0.0, previous_x0)
        video = jnp.arange(x_t.shape[0]) % (x_t.shape[0] // branches)
        if circular:
            window = denoiser.config.latent_shape[0]
            seen, time, previous_x0 = (ring.windows(x, window) for x in (seen, time, previous_x0))
            conditions = ring.windowed(conditions, window, frames)
            video = jnp.repeat(video, frames)
        told: dict[str, Any] = {"is_image": jnp.full(seen.shape[0], frames == 1), "conditions": conditions}
        if not kept:
            value = denoiser(seen, time, previous_x0, **told)
            return ring.merged(value, frames) if circular else value
        value, keeps = denoiser.predict(seen, time, previous_x0, **told, reuse=Reuse(kept[0], sampler.reuse, video))
        return (ring.merged(value, frames) if circular else value), keeps

    conditional = given if prompts is None else _prompted(denoiser, given, prompts, frames, drop=False)
    told: list[Conditions] = [conditional]  # from that of nothing to that of everything
    scales: list[guidance.Scale] = []
    if prompts is not None and not (isinstance(strength, (int, float)) and strength == 1):
        null = _prompted(denoiser, given, prompts if negative is None else negative, frames, drop=negative is None)
        told.insert(0, null)
        scales.insert(0, guidance.scale_over_time(sampler, strength))
    if shown is not None and sampler.known_guidance != 1:
        nothing, nowhere = jax.tree.map(jnp.zeros_like, shown)
        told.insert(0, told[0]._replace(known=nothing, known_mask=nowhere))
        scales.insert(0, guidance.scale_over_time(sampler, sampler.known_guidance))
    branches = len(told)
    if not scales:
        return guidance.unguided(denoise, conditional)
    counted = None if canvas is None else 1 - canvas.mask
    return guidance.guided(denoise, told, scales, rescale=sampler.guidance_rescale, counted=counted)


def _prompted(denoiser: Denoiser, given: Conditions, prompts: Prompts, frames: int, drop: bool) -> Conditions:
    """The conditions with these prompts in them, or with none in their place."""
    if not isinstance(prompts, Text):
        none = denoiser.config.num_classes
        assert none is not None  # labels are for models of classes
        labels = jnp.full_like(prompts, none) if drop else prompts
        return given._replace(class_label=jnp.broadcast_to(labels[:, None], (labels.shape[0], frames)))
    embeddings, mask = (array[:, None] for array in prompts)
    text = TextCondition(
        embeddings=embeddings,
        mask=mask,
        caption_index=jnp.zeros((mask.shape[0], frames), jnp.int32),
        drop=jnp.full((mask.shape[0], 1), drop),
    )
    return given._replace(text=text)
