"""Known pixels put back into what was generated around them, without a visible seam; and a filling for what is not known."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import gaussian_filter

REACH = (2.0, 4.0, 4.0)
"""Over how many frames and pixels a seam is blended: the spread of the Gaussian."""


def keep_pixels(
    made: UInt8[np.ndarray, "t h w 3"], video: UInt8[np.ndarray, "t h w 3"], known: Bool[np.ndarray, "t h w"]
) -> UInt8[np.ndarray, "t h w 3"]:
    """`made` with the pixels of `video` where they are known, to the bit. What lies beside them is changed by as much as the autoencoder was wrong about its
    known neighbours, less and less with the distance."""
    if not known.any():
        return made
    error, share = _spread(video.astype(np.float32) - made, known)
    # At a straight border half of the neighbourhood is known.
    blended = made + error * np.minimum(1, 2 * share)[..., None]
    return np.where(known[..., None], video, np.clip(np.round(blended), 0, 255).astype(np.uint8))


def filled(video: UInt8[np.ndarray, "t h w 3"], known: Bool[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """`video` with what is not known replaced by a blur of what is, so that the encoder, which sees beyond a latent position, sees nothing of it."""
    if not known.any():
        return np.full_like(video, 128)
    values, share = _spread(video.astype(np.float32), known)
    mean = video[known].mean(0)
    weight = np.minimum(1, share / 0.02)[..., None]  # far from all that is known there is only its mean
    guess = np.clip(weight * values + (1 - weight) * mean, 0, 255).round().astype(np.uint8)
    return np.where(known[..., None], video, guess)


def _spread(
    values: Float[np.ndarray, "t h w 3"], known: Bool[np.ndarray, "t h w"]
) -> tuple[Float[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """Known values averaged over the neighbourhood, and how much of it is known."""
    weight = known.astype(np.float32)
    share = gaussian_filter(weight, REACH, mode="nearest")
    total = gaussian_filter(values * weight[..., None], (*REACH, 0), mode="nearest")
    return total / np.maximum(share, 1e-6)[..., None], share
