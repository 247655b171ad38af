"""What a denoiser is told beside noisy latents and their time, and how training draws it.

Every condition that guidance or a user may leave out is left out of some training examples. Draws come from a row's own key.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from walt.diffusion.canvas import Canvas, draw_canvas
from walt.diffusion.configs import DiffusionConfig
from walt.diffusion.process import Schedule, over_frames
from walt.training.task import Batch
from walt.transformer.config import TransformerConfig

LOW_RESOLUTION = 2**31 - 1
"""Folded into a row's key for the noise of its low resolution; steps of a sampler are small numbers."""


class TextCondition(NamedTuple):
    """The captions of a batch and which frame reads which.

    Attributes:
      embeddings: captions after the text encoder.
      mask: true on real tokens.
      caption_index: for each frame, the caption it attends to.
      drop: captions replaced by the learned null text.
    """

    embeddings: Float[Array, "b c l d"]
    mask: Bool[Array, "b c l"]
    caption_index: Int[Array, "b f"]
    drop: Bool[Array, "b c"]


class Conditions(NamedTuple):
    """Arrays lead with the row axis; None, or left out of `scalars`, is what the model does not take or is not told.

    Attributes:
      text: captions.
      class_label: class of each frame; the number of classes stands for none.
      known: clean latents where they are known, zero elsewhere.
      known_mask: 1 where they are.
      level: highest time of every frame, which a sampler is told and the network is not; see `Canvas`.
      low_resolution: latents of the same video at lower resolution, noised to the time in `scalars`.
      scalars: see `walt.transformer.config.SCALARS`; NaN is not told.
    """

    text: TextCondition | None = None
    class_label: Int[Array, "b f"] | None = None
    known: Float[Array, "b f h w c"] | None = None
    known_mask: Float[Array, "b f h w 1"] | None = None
    level: Float[Array, "b f"] | None = None
    low_resolution: Float[Array, "b f i j c"] | None = None
    scalars: dict[str, Float[Array, "b f"]] | None = None

    def counted(self) -> Float[Array, "b f h w 1"] | None:
        """1 where the loss counts: wherever nothing is known. None for everywhere."""
        return None if self.known_mask is None else 1 - self.known_mask

    def canvas(self) -> Canvas | None:
        """What is known, for a sampler; None where nothing is."""
        if self.known is None or self.known_mask is None:
            return None
        return Canvas(self.known, self.known_mask, self.level)


def draw_conditions(
    transformer: TransformerConfig, diffusion: DiffusionConfig, schedule: Schedule, batch: Batch, keys: jax.Array
) -> Conditions:
    """All but the text of a training batch, with one key per row; what the model does not take is None."""
    x0, is_image = batch["latents"], batch["is_image"]
    of = lambda number: jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)  # noqa: E731
    label = _draw_class(transformer, diffusion, batch, of(0)) if transformer.num_classes is not None else None
    known, mask = draw_canvas(diffusion, x0, is_image, of(1)) if transformer.canvas else (None, None)
    scalars, low_resolution = _draw_scalars(transformer, diffusion, batch, of(2)), None
    if transformer.low_resolution is not None:
        low_resolution, times = _noised(diffusion, schedule, batch["low_resolution"], is_image, of(3))
        rate = diffusion.low_resolution_dropout
        dropped = _per_frame(of(4), is_image, lambda k, n: jax.random.bernoulli(k, rate, (n,)))(times.shape[1])
        low_resolution = jnp.where(over_frames(dropped, low_resolution) > 0, 0.0, low_resolution)
        scalars["low_resolution_time"] = jnp.where(dropped, 1.0, times)  # nothing of it is left
    return Conditions(None, label, known, mask, None, low_resolution, scalars)


def _draw_class(
    transformer: TransformerConfig, diffusion: DiffusionConfig, batch: Batch, keys: jax.Array
) -> Int[Array, "b f"]:
    assert transformer.num_classes is not None
    dropped = _per_frame(keys, batch["is_image"], lambda k, n: jax.random.bernoulli(k, diffusion.class_dropout, (n,)))
    return jnp.where(dropped(batch["latents"].shape[1]), transformer.num_classes, batch["class_label"])


def _draw_scalars(
    transformer: TransformerConfig, diffusion: DiffusionConfig, batch: Batch, keys: jax.Array
) -> dict[str, Float[Array, "b f"]]:
    """Frame rate and motion, each untold at its rate."""
    x0, is_image = batch["latents"], batch["is_image"]
    values = {}
    if "fps" in transformer.scalars:
        values["fps"] = jnp.where(is_image[:, None], jnp.nan, batch["fps"][:, None])
    if "motion" in transformer.scalars:
        values["motion"] = jnp.where(is_image[:, None], 0.0, motion_of(x0)[:, None])
    for number, (name, value) in enumerate(values.items()):
        own = jax.vmap(lambda key, n=number: jax.random.fold_in(key, n))(keys)
        dropped = _per_frame(own, is_image, lambda k, n: jax.random.bernoulli(k, diffusion.scalar_dropout, (n,)))
        value = jnp.broadcast_to(value, x0.shape[:2])
        values[name] = jnp.where(dropped(x0.shape[1]), jnp.nan, value)
    return values


def motion_of(x0: Float[Array, "b f h w c"]) -> Float[Array, " b"]:
    """Mean absolute change between consecutive latent frames; 0 for a single one."""
    if x0.shape[1] == 1:
        return jnp.zeros(x0.shape[0], x0.dtype)
    return jnp.abs(jnp.diff(x0, axis=1)).mean((1, 2, 3, 4))


def _noised(
    diffusion: DiffusionConfig,
    schedule: Schedule,
    latents: Float[Array, "b f i j c"],
    is_image: Bool[Array, " b"],
    keys: jax.Array,
) -> tuple[Float[Array, "b f i j c"], Float[Array, "b f"]]:
    """Low-resolution latents with t ~ U(0, t_max) of noise (W.A.L.T, section 5), and these times."""
    time_keys, noise_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
    draw = _per_frame(
        time_keys, is_image, lambda k, n: jax.random.uniform(k, (n,), maxval=diffusion.low_resolution_max_time)
    )
    t = draw(latents.shape[1])
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:], latents.dtype))(noise_keys)
    return add_noise(schedule, latents, t, noise), t


def given_low_resolution(
    schedule: Schedule, latents: Float[Array, "b f i j c"], t: float, keys: jax.Array
) -> Conditions:
    """The conditions of a super-resolution model that samples: low-resolution latents, noised to the one time t with the rows'
    `keys`."""
    times = jnp.full(latents.shape[:2], t, latents.dtype)
    # Not the keys that the noise of the sample itself is drawn from.
    own = jax.vmap(lambda key: jax.random.fold_in(key, LOW_RESOLUTION))(keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, latents.shape[1:], latents.dtype))(own)
    noised = add_noise(schedule, latents, times, noise)
    return Conditions(low_resolution=noised, scalars={"low_resolution_time": times})


def add_noise(
    schedule: Schedule, latents: Float[Array, "b f ..."], t: Float[Array, "b f"], noise: Float[Array, "b f ..."]
) -> Float[Array, "b f ..."]:
    """x_t of the process."""
    alpha, sigma = (over_frames(scale(t), latents) for scale in (schedule.alpha, schedule.sigma))
    return alpha * latents + sigma * noise


def _per_frame(keys: jax.Array, is_image: Bool[Array, " b"], draw):
    """Per row `draw(key, frames)`, of which a video takes the first for all its frames."""

    def drawn(frames: int) -> Array:
        values = jax.vmap(lambda key: draw(key, frames))(keys)
        return jnp.where(is_image[:, None], values, values[:, :1])

    return drawn
