"""Stage-1 losses. They see pixels in [0, 1]; the one conversion from the model's [-1, 1] is `to_unit`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.autoencoder.config import ReconstructionLossConfig

MOVING_STD = 0.05
"""Temporal standard deviation, on the [0, 1] scale, above which a pixel counts as moving."""


def to_unit(video: Float[Array, "..."]) -> Float[Array, "..."]:
    """[-1, 1] to [0, 1]."""
    return (video + 1.0) * 0.5


def reconstruction_loss(
    config: ReconstructionLossConfig, reconstruction: Float[Array, "b t h w 3"], video: Float[Array, "b t h w 3"]
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
