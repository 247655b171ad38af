"""Training the autoencoder, with or without a critic, through the common loop."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from walt.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from walt.autoencoder.discriminator import Discriminator
from walt.autoencoder.losses import discriminator_loss, generator_loss, reconstruction_loss, to_unit
from walt.autoencoder.model import Autoencoder, reconstruct, to_float
from walt.autoencoder.perceptual import PerceptualDistance
from walt.autoencoder.ssim import WINDOW, ssim
from walt.training.flops import product_flops
from walt.training.module import Functional
from walt.training.state import TrainState
from walt.training.task import Batch, RowCost, Tree

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
CRITIC = "critic"
STATISTICS = ("latent_mean", "latent_std")
CERTAIN = 0.01
"""A critic that doubts neither side more than this is saturated: its gradients, and what they teach, vanish."""

Video = Float[Array, "b t h w 3"]
Metrics = dict[str, Array]


class CollapseError(RuntimeError):
    """The autoencoder has stopped telling its inputs apart."""


class AutoencoderTask:
    """Reconstruction of clips.

    Parameters are the group "generator" and, with `loss.adversarial`, "discriminator". `extra` holds the latent statistics,
    0 and 1 until calibrated, and under "critic" the moving averages of its logits and for how many steps in a row it has
    been saturated.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        loss: AutoencoderLossConfig,
        clip_shape: tuple[int, int, int],
        perceptual: PerceptualDistance | None = None,
    ):
        """`clip_shape` is (frames, height, width); `perceptual` is the distance of clips in [0, 1] that `loss.perceptual`
        describes. Raises `ConfigError` if the encoder cannot take such clips.
        """
        assert (perceptual is None) == (loss.perceptual is None)
        self._latent_shape = config.latent_shape(*clip_shape)
        self._clip_shape, self._loss, self._perceptual = clip_shape, loss, perceptual
        self.model = Functional(lambda rngs: Autoencoder(config, rngs))
        self._adversarial = loss.adversarial
        if loss.adversarial is not None:
            shape = loss.adversarial.discriminator
            self.discriminator = Functional(lambda rngs: Discriminator(shape, clip_shape, rngs))

    def init(self, key: jax.Array) -> tuple[dict[str, Tree], Tree]:
        params, statistics = self.model.init(key)
        groups = {GENERATOR: params}
        if self._adversarial is not None:
            groups[DISCRIMINATOR], _ = self.discriminator.init(jax.random.fold_in(key, 1))
        return groups, self.extra(statistics)

    def extra(self, statistics: Tree) -> Tree:
        """The `extra` of a run that starts with these latent statistics."""
        critic = {} if self._adversarial is None else {CRITIC: new_critic_record()}
        return {name: statistics[name] for name in STATISTICS} | critic

    def gradients(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Tree], Tree, dict[str, jax.Array]]:
        """Both groups from one forward pass of the autoencoder: the critic is differentiated at the reconstructions, and
        the gradient at the reconstructions is pulled back to the autoencoder."""
        video = to_float(batch["video"])
        reconstruction, pullback = jax.vjp(
            lambda params: self._reconstruct(params, state.extra, batch, key), state.params[GENERATOR]
        )

        def seen_by_generator(reconstruction: Video) -> tuple[Array, Metrics]:
            return self._generator_loss(reconstruction, video, state.params.get(DISCRIMINATOR))

        slope, metrics = jax.grad(seen_by_generator, has_aux=True)(reconstruction)
        grads, extra = {GENERATOR: pullback(slope)[0]}, state.extra
        adversarial = self._adversarial
        if adversarial is not None:
            record = extra[CRITIC]
            grads[DISCRIMINATOR], (critic_metrics, averages) = jax.grad(
                lambda params: discriminator_loss(
                    adversarial, self.discriminator.bind(params), video, reconstruction, record["logits"]
                ),
                has_aux=True,
            )(state.params[DISCRIMINATOR])
            metrics |= critic_metrics
            extra = extra | {CRITIC: next_critic_record(record, averages, critic_metrics)}
        return grads, extra, metrics

    def eval_step(self, params: dict[str, Tree], extra: Tree, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Reconstruction alone, without noise on the latents: a critic's opinion says nothing across runs. `ssim` is among
        the metrics where frames are large enough for its window."""
        video, reconstruction = to_float(batch["video"]), self._reconstruct(params[GENERATOR], extra, batch)
        metrics = self._generator_loss(reconstruction, video, None)[1]
        if min(self._clip_shape[1:]) < WINDOW:
            return metrics
        return metrics | {"ssim": ssim(to_unit(reconstruction), to_unit(video)).mean()}

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "video": jax.ShapeDtypeStruct((*self._clip_shape, 3), np.uint8),
            "row": jax.ShapeDtypeStruct((), np.int32),
        }

    def row_cost(self) -> RowCost:
        """Tokens are latent positions; FLOPs are the products and convolutions of the forward pass, times three, and three passes of
        the critic (reals, reconstructions, the autoencoder's gradient); R1 and the perceptual network are not counted."""
        clip = jax.ShapeDtypeStruct((1, *self._clip_shape, 3), jnp.float32)
        forward = [product_flops(lambda p, e, v: reconstruct(self.model.bind(p, e), v), *self._abstract(), clip)]
        if self._adversarial is not None:
            critic = product_flops(
                lambda p, video: self.discriminator.bind(p)(video), self.discriminator.abstract_params, clip
            )
            forward += [critic] * 3
        return RowCost(tokens=int(np.prod(self._latent_shape[:3])), flops=3.0 * sum(forward))

    def _abstract(self) -> tuple[Tree, Tree]:
        return self.model.abstract_params, self.model.abstract_extra

    def _reconstruct(self, params: Tree, extra: Tree, batch: Batch, key: jax.Array | None = None) -> Video:
        """Without a key nothing is random: what evaluation sees."""
        model = self.model.bind(params, latent_statistics_of(extra))
        latents = model.encode_raw(to_float(batch["video"]))
        if self._loss.freeze_encoder:
            latents = jax.lax.stop_gradient(latents)
        if key is not None and self._loss.latent_noise:
            latents = latents + self._loss.latent_noise * self._noise(latents, batch["row"], key)
        return model.decode_raw(latents)

    def _generator_loss(self, reconstruction: Video, video: Video, critic: Tree | None) -> tuple[Array, Metrics]:
        loss, metrics = reconstruction_loss(self._loss, reconstruction, video)
        if self._perceptual is not None and self._loss.perceptual is not None:
            metrics["perceptual"] = self._perceptual(
                self._perceptual.params, to_unit(reconstruction), to_unit(video)
            ).mean()
            loss = loss + self._loss.perceptual.weight * metrics["perceptual"]
        if critic is not None and self._adversarial is not None:
            metrics["adversarial"] = generator_loss(self.discriminator.bind(critic)(to_unit(reconstruction)))
            loss = loss + self._adversarial.weight * metrics["adversarial"]
        return loss, metrics | {"loss": loss}

    def _noise(self, latents: jax.Array, rows: jax.Array, key: jax.Array) -> jax.Array:
        """Noise of a row's own key, as strong as each channel varies."""
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        noise = jax.vmap(lambda row_key: jax.random.normal(row_key, latents.shape[1:]))(keys)
        return noise * jax.lax.stop_gradient(latents).std(axis=(1, 2, 3), keepdims=True)


def latent_statistics_of(extra: Tree) -> Tree:
    """The part of a task's `extra` that belongs to the autoencoder."""
    return {name: extra[name] for name in STATISTICS}


def new_critic_record() -> Tree:
    """What is remembered of a critic that has seen nothing."""
    return {"logits": {"real": jnp.zeros(()), "fake": jnp.zeros(())}, "saturated_steps": jnp.zeros((), jnp.int32)}


def next_critic_record(record: Tree, averages: Tree, metrics: Metrics) -> Tree:
    """The record after a batch: new averages, and one more saturated step or none."""
    saturated = jnp.maximum(metrics["doubt_real"], metrics["doubt_fake"]) < CERTAIN
    return {"logits": averages, "saturated_steps": jnp.where(saturated, record["saturated_steps"] + 1, 0)}


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
