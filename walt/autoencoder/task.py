"""Training the autoencoder through the common loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from walt.autoencoder.config import AutoencoderConfig, ReconstructionLossConfig
from walt.autoencoder.losses import reconstruction_loss
from walt.autoencoder.model import Autoencoder, reconstruct, to_float
from walt.training.module import Functional
from walt.training.state import TrainState
from walt.training.task import Batch, RowCost, Tree

GROUP = "generator"


class CollapseError(RuntimeError):
    """The autoencoder has stopped telling its inputs apart."""


class AutoencoderTask:
    """Reconstruction of clips. Parameters are the group "generator"; `extra` holds the latent statistics, 0 and 1 until calibrated."""

    def __init__(self, config: AutoencoderConfig, loss: ReconstructionLossConfig, clip_shape: tuple[int, int, int]):
        """`clip_shape` is (frames, height, width); raises `ValueError` if the encoder cannot take it."""
        self._latent_shape = config.latent_shape(*clip_shape)
        self._clip_shape = clip_shape
        self._loss = loss
        self.model = Functional(lambda rngs: Autoencoder(config, rngs))

    def init(self, key: jax.Array) -> tuple[dict[str, Tree], Tree]:
        params, extra = self.model.init(key)
        return {GROUP: params}, extra

    def gradients(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Tree], Tree, dict[str, jax.Array]]:
        def loss(params: Tree) -> tuple[jax.Array, dict[str, jax.Array]]:
            return self._evaluate(params, state.extra, batch, key)

        gradients, metrics = jax.grad(loss, has_aux=True)(state.params[GROUP])
        return {GROUP: gradients}, state.extra, metrics

    def eval_step(self, params: dict[str, Tree], extra: Tree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        return self._evaluate(params[GROUP], extra, batch)[1]

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "video": jax.ShapeDtypeStruct((*self._clip_shape, 3), np.uint8),
            "row": jax.ShapeDtypeStruct((), np.int32),
        }

    def row_cost(self) -> RowCost:
        """Tokens are latent positions; FLOPs are XLA's count of the forward pass, times three."""
        clip = jax.ShapeDtypeStruct((1, *self._clip_shape, 3), jnp.float32)
        forward = jax.jit(lambda params, extra, video: reconstruct(self.model.bind(params, extra), video))
        cost: Any = forward.lower(self.model.abstract_params, self.model.abstract_extra, clip).cost_analysis()
        return RowCost(tokens=int(np.prod(self._latent_shape[:3])), flops=3.0 * cost["flops"])

    def _evaluate(
        self, params: Tree, extra: Tree, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Without a key nothing is random: what evaluation sees."""
        video, model = to_float(batch["video"]), self.model.bind(params, extra)
        latents = model.encode_raw(video)
        if self._loss.freeze_encoder:
            latents = jax.lax.stop_gradient(latents)
        if key is not None and self._loss.latent_noise:
            latents = latents + self._loss.latent_noise * self._noise(latents, batch["row"], key)
        return reconstruction_loss(self._loss, model.decode_raw(latents), video)

    def _noise(self, latents: jax.Array, rows: jax.Array, key: jax.Array) -> jax.Array:
        """Noise of a row's own key, as strong as each channel varies."""
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        noise = jax.vmap(lambda row_key: jax.random.normal(row_key, latents.shape[1:]))(keys)
        return noise * jax.lax.stop_gradient(latents).std(axis=(1, 2, 3), keepdims=True)


def latent_statistics(model: Functional[Autoencoder], params: Tree, clips: Iterable[np.ndarray]) -> Tree:
    """The calibrated `extra`: mean and standard deviation per channel of the raw latents of uint8 clips [B,T,H,W,3].

    Moments accumulate in float64 on the host. Raises `CollapseError` when a channel does not vary.
    """
    encode = jax.jit(lambda params, video: model.bind(params, _uncalibrated(model)).encode_raw(to_float(video)))
    count, total, total_squared = 0, np.float64(0), np.float64(0)
    for video in clips:
        # Parameters may be spread over the devices of several hosts, and then so are the latents.
        latents = multihost_utils.process_allgather(encode(params, video), tiled=True)
        latents = np.asarray(latents, np.float64).reshape(-1, latents.shape[-1])
        count, total, total_squared = (
            count + len(latents),
            total + latents.sum(0),
            total_squared + np.square(latents).sum(0),
        )
    if not count:
        raise ValueError("latent statistics need at least one clip, got none")
    mean = total / count
    std = np.sqrt(np.maximum(total_squared / count - np.square(mean), 0))
    if not np.all(std > 1e-6):
        raise CollapseError(
            f"latent channels {np.flatnonzero(std <= 1e-6).tolist()} do not vary over {count} positions; the autoencoder has collapsed"
        )
    return {"latent_mean": jnp.asarray(mean, jnp.float32), "latent_std": jnp.asarray(std, jnp.float32)}


def _uncalibrated(model: Functional[Autoencoder]) -> Tree:
    shape = model.abstract_extra["latent_mean"].shape
    return {"latent_mean": jnp.zeros(shape), "latent_std": jnp.ones(shape)}
