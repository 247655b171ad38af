"""Stage-1 losses. They see pixels in [0, 1]; the one conversion from the model's [-1, 1] is `to_unit`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.autoencoder.config import AdversarialConfig, AutoencoderLossConfig

Critic = Callable[[Float[Array, "b t h w 3"]], Float[Array, " b"]]

MOVING_STD = 0.05
"""Temporal standard deviation, on the [0, 1] scale, above which a pixel counts as moving."""


def to_unit(video: Float[Array, "..."]) -> Float[Array, "..."]:
    """[-1, 1] to [0, 1]."""
    return (video + 1.0) * 0.5


def reconstruction_loss(
    config: AutoencoderLossConfig, reconstruction: Float[Array, "b t h w 3"], video: Float[Array, "b t h w 3"]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """(loss, metrics) of reconstructions in [-1, 1]; the loss is the mean over rows, `psnr` the mean over rows of each clip's PSNR in dB."""
    error = to_unit(reconstruction) - to_unit(video)
    squared_error = jnp.square(error).mean(axis=(1, 2, 3, 4))
    mse = squared_error.mean()
    weighted = mse
    if config.motion_weight and video.shape[1] > 1:
        weighted = mse + config.motion_weight * (jnp.square(error) * _moving(video)).mean()
    metrics = {"mse": mse, "psnr": (-10.0 * jnp.log10(squared_error + 1e-10)).mean()}
    loss = config.mse_weight * weighted
    if config.difference_weight and video.shape[1] > 1:
        metrics["difference"] = jnp.abs(jnp.diff(error, axis=1)).mean()
        loss = loss + config.difference_weight * metrics["difference"]
    return loss, {"loss": loss, **metrics}


def _moving(video: Float[Array, "b t h w 3"]) -> Float[Array, "b 1 h w 1"]:
    """1 where a pixel moves (some channel has a temporal standard deviation above `MOVING_STD`), else 0."""
    variance = to_unit(jax.lax.stop_gradient(video)).var(axis=1, keepdims=True).max(axis=-1, keepdims=True)
    return (variance > MOVING_STD**2).astype(video.dtype)


def generator_loss(fake_logits: Float[Array, " b"]) -> Float[Array, ""]:
    """Non-saturating: small where the critic takes reconstructions for real (Goodfellow et al., 2014)."""
    return jax.nn.softplus(-fake_logits).mean()


def discriminator_loss(
    config: AdversarialConfig,
    critic: Critic,
    video: Float[Array, "b t h w 3"],
    reconstruction: Float[Array, "b t h w 3"],
    averages: dict[str, Array],
) -> tuple[Float[Array, ""], tuple[dict[str, Array], dict[str, Array]]]:
    """(loss, (metrics, next averages)) of a critic on real clips and reconstructions in [-1, 1].

    `averages` are the moving averages of the logits, {"real": …, "fake": …}; those of before this batch regularise it.
    Second order: R1 differentiates the critic's gradient, so the critic must be twice differentiable.
    """
    real_clips, fake_clips = to_unit(video), to_unit(jax.lax.stop_gradient(reconstruction))
    real, pullback = jax.vjp(critic, real_clips)
    (slope,) = pullback(jnp.ones_like(real))  # rows do not mix, so one pass gives the gradient of every row's logit
    fake = critic(fake_clips)
    r1 = jnp.square(slope).sum(axis=(1, 2, 3, 4)).mean()
    lecam = lecam_regularizer(real, fake, averages)
    adversarial = jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()
    loss = adversarial + config.r1_weight * r1 + config.lecam_weight * lecam
    decay, means = config.lecam_decay, {"real": real.mean(), "fake": fake.mean()}
    following = {name: decay * averages[name] + (1.0 - decay) * jax.lax.stop_gradient(means[name]) for name in means}
    metrics = {
        "discriminator_loss": loss,
        "r1": r1,
        "lecam": lecam,
        "logits_real": means["real"],
        "logits_fake": means["fake"],
        # How often the critic errs, softly: near 0 for both it is certain of everything and teaches nothing.
        "doubt_real": jax.nn.sigmoid(-real).mean(),
        "doubt_fake": jax.nn.sigmoid(fake).mean(),
    }
    return loss, (metrics, following)


def lecam_regularizer(
    real: Float[Array, " b"], fake: Float[Array, " b"], averages: dict[str, Array]
) -> Float[Array, ""]:
    """Squared distance of logits beyond the other side's average, in the form of MAGVIT's code: only what has moved past
    it counts."""
    above = jnp.square(jax.nn.relu(real - averages["fake"])).mean()
    below = jnp.square(jax.nn.relu(averages["real"] - fake)).mean()
    return above + below
