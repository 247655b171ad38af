"""Structural similarity of frames (Wang et al., 2004), as the paper defines it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

WINDOW = 11
"""Side of the Gaussian window, whose standard deviation is 1.5 pixels."""

_SIGMA, _C1, _C2 = 1.5, 0.01**2, 0.03**2


def ssim(a: Float[Array, "... h w c"], b: Float[Array, "... h w c"]) -> Float[Array, "..."]:
    """Mean structural similarity of frames in [0, 1], over channels and all windows that lie inside the frame.

    Raises `ValueError` for frames smaller than the window.
    """
    if min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"SSIM needs frames of at least {WINDOW}x{WINDOW}, got {a.shape[-3]}x{a.shape[-2]}")
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (luminance * structure).mean(axis=(-3, -2, -1))


def _blur(x: Float[Array, "... h w c"]) -> Float[Array, "... h2 w2 c"]:
    """Gaussian means over windows inside the frame, rows and columns one after the other."""
    rows, columns = (_window_matrix(size) for size in x.shape[-3:-1])
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, x, columns, precision="highest")


def _window_matrix(size: int) -> Float[np.ndarray, "positions size"]:
    """Row i holds the window's weights over the pixels i to i + WINDOW - 1."""
    weights = np.exp(-0.5 * (np.arange(WINDOW) - WINDOW // 2) ** 2 / _SIGMA**2)
    positions = size - WINDOW + 1
    matrix = np.zeros((positions, size), np.float32)
    for start in range(positions):
        matrix[start, start : start + WINDOW] = weights / weights.sum()
    return matrix
