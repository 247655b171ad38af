"""Stage 2: training the denoiser on latents with captions.

Every random draw of a batch row comes from that row's own key, so its loss depends neither on its neighbours nor on how
the batch is split.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.diffusion import loss, parameterisation, process
from walt.diffusion.conditions import TextCondition, draw_conditions
from walt.diffusion.configs import DiffusionConfig
from walt.diffusion.denoiser import Denoiser, encode_captions
from walt.text.config import TextEncoderConfig
from walt.text.encoder import make_encoder
from walt.training.module import Functional
from walt.training.state import TrainState
from walt.training.task import Batch, RowCost, Share, Tree
from walt.transformer.config import TransformerConfig
from walt.transformer.flops import transformer_flops

TextSource = Literal["trained", "frozen", "prepared"]
MakeDenoiser = Callable[..., nnx.Module]
TIME_BUCKETS = (0.0, 0.25, 0.5, 0.75, 1.0)
TEXT_ENCODER = "text_encoder"  # where a frozen one lies in `extra`


class DiffusionTask:
    """The training `Task` of a denoiser; one parameter group, `model`."""

    def __init__(
        self,
        transformer: TransformerConfig,
        text: TextEncoderConfig | None,
        diffusion: DiffusionConfig,
        make_denoiser: MakeDenoiser = Denoiser,
        *,
        text_source: TextSource = "trained",
    ):
        """`make_denoiser` builds another module with the interface of `Denoiser`. The text encoder is `trained` with it; or `frozen`,
        its weights no parameters but part of the run's `extra`, given when it starts; or has `prepared` the captions of the data.

        Raises:
          ConfigError: self-conditioning is trained at some rate but the transformer has no channels for it; or nothing is left to generate.
        """
        if diffusion.self_conditioning_rate > 0 and not transformer.self_conditioning:
            raise ConfigError(
                f"diffusion.self_conditioning_rate is {diffusion.self_conditioning_rate}, but transformer.self_conditioning is False; "
                "set the rate to 0 or give the transformer the channels"
            )
        if transformer.canvas and max(diffusion.known_frames) >= transformer.latent_shape[0]:
            raise ConfigError(
                f"diffusion.known_frames is {diffusion.known_frames}, but a video has {transformer.latent_shape[0]} latent frames: "
                "some must be left to generate"
            )
        self.transformer, self.text, self.diffusion = transformer, text, diffusion
        self.schedule = diffusion.make_schedule(transformer.latent_shape)
        self.text_source, self.text_encoder = text_source, None
        if text is not None and text_source != "trained":
            make_denoiser = partial(make_denoiser, has_encoder=False)
        if text is not None and text_source == "frozen":
            self.text_encoder = Functional(lambda rngs: make_encoder(text, rngs))
        self.denoiser = Functional(lambda rngs: make_denoiser(transformer, text, rngs))

    def init(self, key: jax.Array) -> tuple[dict[str, Tree], Tree]:
        """Fresh ({"model": parameters}, other variables)."""
        params, extra = self.denoiser.init(key)
        if self.text_encoder is not None:
            empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.text_encoder.abstract_params)
            extra = {**extra, TEXT_ENCODER: empty}
        return {"model": params}, extra

    def gradients(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Tree], Tree, dict[str, Array]]:
        """Gradients of the mean loss over the rows of `batch`."""

        def mean_loss(params: Tree) -> Array:
            return jnp.mean(self.row_losses(params, state.extra, batch, key))

        value, grads = jax.value_and_grad(mean_loss)(state.params["model"])
        return {"model": grads}, state.extra, {"loss": value}

    def eval_step(self, params: dict[str, Tree], extra: Tree, batch: Batch, key: jax.Array) -> dict[str, Array | Share]:
        """The training loss of `batch`, with draws of `key`: as a whole, and of the frames at times within each of TIME_BUCKETS."""
        losses, t = self.frame_losses(params["model"], extra, batch, key)
        metrics: dict[str, Array | Share] = {"loss": jnp.mean(losses)}
        bucket = jnp.clip(jnp.searchsorted(jnp.asarray(TIME_BUCKETS), t) - 1, 0)
        for number, (low, high) in enumerate(pairwise(TIME_BUCKETS)):
            inside = bucket == number
            metrics[f"loss_t{low:g}-{high:g}"] = Share(jnp.sum(losses * inside), jnp.sum(inside))
        return metrics

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One row: latents and what the model is told; of captions, one slot per latent frame."""
        frames, height, width = self.transformer.latent_shape
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "latents": ((frames, height, width, self.transformer.out_channels), jnp.float32),
            "is_image": ((), jnp.bool_),
            "row": ((), jnp.int32),
        }
        if self.text is not None:
            slots = (frames, self.diffusion.caption_length)
            if self.text_source == "prepared":
                shapes["text_embeddings"] = ((*slots, self.text.width), jnp.float32)
            else:
                shapes["caption_tokens"] = (slots, jnp.int32)
            shapes["caption_mask"] = (slots, jnp.bool_)
            shapes["caption_index"] = ((frames,), jnp.int32)
        if self.transformer.num_classes is not None:
            shapes["class_label"] = ((frames,), jnp.int32)
        if "fps" in self.transformer.scalars:
            shapes["fps"] = ((), jnp.float32)
        if self.transformer.low_resolution is not None:
            small = (frames, height // self.transformer.low_resolution, width // self.transformer.low_resolution)
            shapes["low_resolution"] = ((*small, self.transformer.out_channels), jnp.float32)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def row_cost(self) -> RowCost:
        """Forward and backward of the transformer, and its self-conditioning forward at its rate; the small text
        encoder is not counted."""
        frames, height, width = self.transformer.grid
        passes = 3 + self.diffusion.self_conditioning_rate
        text_length = 0 if self.text is None else self.diffusion.caption_length
        flops = passes * transformer_flops(self.transformer, text_length)
        return RowCost(tokens=frames * height * width, flops=flops)

    def row_losses(self, params: Tree, extra: Tree, batch: Batch, key: jax.Array) -> Float[Array, " b"]:
        """The loss of every row."""
        return self.frame_losses(params, extra, batch, key)[0].mean(1)

    def frame_losses(
        self, params: Tree, extra: Tree, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, "b f"], Float[Array, "b f"]]:
        """The loss of every frame, and its time: noise the latents, predict, compare."""
        x0, is_image = batch["latents"], batch["is_image"]
        row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        keys = jax.vmap(lambda key: jax.random.split(key, 5))(row_keys)
        time_keys, noise_keys, self_keys, drop_keys, condition_keys = (keys[:, i] for i in range(5))

        draw = lambda key, is_image: self.diffusion.draw_times(self.schedule, key, x0.shape[1], is_image)  # noqa: E731
        t = jax.vmap(draw)(time_keys, is_image)
        noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:], x0.dtype))(noise_keys)
        alpha, sigma = (process.over_frames(table(t), x0) for table in (self.schedule.alpha, self.schedule.sigma))
        x_t = alpha * x0 + sigma * noise
        seen, time = process.network_inputs(self.schedule, x_t, t)

        encoder_weights = extra.get(TEXT_ENCODER)
        extra = {name: value for name, value in extra.items() if name != TEXT_ENCODER}
        denoiser = self.denoiser.bind(params, extra)
        conditions = draw_conditions(self.transformer, self.diffusion, self.schedule, batch, condition_keys)
        conditions = conditions._replace(text=self._text(denoiser, encoder_weights, batch, drop_keys))
        previous_x0 = jnp.zeros_like(x0)
        if self.diffusion.self_conditioning_rate > 0:
            # Gradients are stopped at the inputs, not at the result, so that nothing of this pass is kept for the
            # backward pass.
            frozen = self.denoiser.bind(jax.lax.stop_gradient(params), extra)
            value = frozen(seen, time, previous_x0, is_image=is_image, conditions=jax.lax.stop_gradient(conditions))
            estimate, _ = parameterisation.to_x0_and_noise(self.diffusion.prediction, value, x_t, alpha, sigma)
            if conditions.known is not None and conditions.known_mask is not None:
                # As in sampling, which holds what is known; no loss makes the network's own estimate right there.
                estimate = jnp.where(conditions.known_mask > 0, conditions.known, estimate)
            used = jax.vmap(lambda k: jax.random.bernoulli(k, self.diffusion.self_conditioning_rate))(self_keys)
            previous_x0 = jnp.where(used[:, None, None, None, None], estimate, previous_x0)
        value = denoiser(seen, time, previous_x0, is_image=is_image, conditions=conditions)
        return loss.frame_losses(self.diffusion, value, x_t, x0, noise, alpha, sigma, conditions.counted()), t

    def _text(self, denoiser: Any, encoder_weights: Tree | None, batch: Batch, keys: jax.Array) -> TextCondition | None:
        if self.text is None:
            return None
        mask = batch["caption_mask"]
        drop = jax.vmap(lambda k: jax.random.bernoulli(k, self.diffusion.text_dropout, mask.shape[1:2]))(keys)
        if self.text_source == "prepared":
            embeddings = batch["text_embeddings"]
        elif self.text_encoder is not None and encoder_weights is not None:
            embeddings = encode_captions(self.text_encoder.bind(encoder_weights), batch["caption_tokens"], mask)
        else:
            embeddings = denoiser.embed_text(batch["caption_tokens"], mask)
        return TextCondition(embeddings, mask, batch["caption_index"], drop)
