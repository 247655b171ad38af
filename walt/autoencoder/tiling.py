"""Frames too large for memory, in overlapping tiles. Approximate: see `Tiling`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from walt.config import ConfigError

Step = Callable[[Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Tiling:
    """Square tiles of the latent grid, `overlap` positions into their neighbours, blended linearly there.

    Exact where one tile covers the frame. Otherwise approximate, and no halo could make it exact: group norm takes its
    statistics over a whole frame, of which a tile sees a part. Measured with the shipped mini autoencoder in tiles of 64x64
    pixels, a quarter overlapping, on nine frames of smooth moving waves of 128x128 (tests/autoencoder/test_tiling.py):
    the reconstruction in tiles is at 22.1 dB PSNR from the untiled one. (Such waves are nothing that the model knows:
    untiled, it reconstructs them to 12 dB.)
    """

    size: int = 32
    overlap: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"tiling.size must be at least 1, got {self.size}")
        if not 0 <= self.overlap <= self.size // 2:
            raise ConfigError(f"tiling.overlap must lie between 0 and half of size {self.size}, got {self.overlap}")

    def starts(self, length: int) -> list[int]:
        """Where the tiles of a side of `length` positions begin; all tiles have the same size, the last one ends with it."""
        last = max(0, length - self.size)
        return [*range(0, last, self.size - self.overlap), last]

    def ramp(self, start: int, length: int) -> Float[np.ndarray, " size"]:
        """Weights along one side of a tile: rising over the overlap, but for where the frame itself ends."""
        size = min(self.size, length)
        weights = np.ones(size)
        rise = np.arange(1, self.overlap + 1) / (self.overlap + 1)
        if start > 0:
            weights[: self.overlap] = rise
        if start + size < length:
            weights[size - self.overlap :] = rise[::-1]
        return weights


def tiled(step: Step, tiling: Tiling, in_factor: int, out_factor: int) -> Step:
    """A streaming step (chunk, carry) → (result, carry) that runs `step` on tiles, each with a carry of its own.

    `in_factor` and `out_factor` are the positions of the chunk and of the result per position of the latent grid.
    """

    def run(chunk: Any, carry: Any) -> tuple[Any, Any]:
        height, width = chunk.shape[2] // in_factor, chunk.shape[3] // in_factor
        tiles = list(itertools.product(tiling.starts(height), tiling.starts(width)))
        total = weight = np.zeros(())
        carries = []
        for index, (top, left) in enumerate(tiles):
            rows, columns = (slice(first * in_factor, (first + tiling.size) * in_factor) for first in (top, left))
            result, after = step(chunk[:, :, rows, columns], None if carry is None else carry[index])
            carries.append(after)
            result = np.asarray(jax.device_get(result))
            if not index:
                total = np.zeros(
                    (*result.shape[:2], height * out_factor, width * out_factor, result.shape[-1]), np.float32
                )
                weight = np.zeros(total.shape[2:4], np.float32)
            ramps = (np.repeat(tiling.ramp(*side), out_factor) for side in ((top, height), (left, width)))
            share = np.outer(*ramps).astype(np.float32)
            rows, columns = (
                slice(first * out_factor, first * out_factor + n) for first, n in zip((top, left), share.shape)
            )
            total[:, :, rows, columns] += share[:, :, None] * result
            weight[rows, columns] += share
        return total / weight[:, :, None], tuple(carries)

    return run
