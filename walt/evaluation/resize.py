"""The ways in which published evaluations bring frames to a size. They differ by more than figures in publications do.

Each is linear and separable: a matrix per axis, [size out, size in], of a rule that says which pixels an output pixel is made of.

    tf1          TensorFlow 1's `resize_bilinear`: pixel i of the output lies at i · in / out of the input, so pictures shift up and left
    half-pixel   bilinear between the centres of pixels, as PyTorch's `interpolate(..., align_corners=False)` and TensorFlow 2 by default
    antialiased  the same when it enlarges; a triangle as wide as the pixels of the output when it shrinks, as PyTorch's `antialias=True`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Matrix = Float[np.ndarray, "out in"]


def _tf1(size: int, target: int) -> Matrix:
    return _between(np.arange(target) * (size / target), size)


def _half_pixel(size: int, target: int) -> Matrix:
    return _between(np.maximum((np.arange(target) + 0.5) * (size / target) - 0.5, 0), size)


def _between(places: Float[np.ndarray, " out"], size: int) -> Matrix:
    """Bilinear weights of the two pixels around each place; beyond the last pixel, that one."""
    before = np.minimum(np.floor(places).astype(int), size - 1)
    after = np.minimum(before + 1, size - 1)
    rows, share = np.arange(len(places)), np.minimum(places - before, 1)
    weights = np.zeros((len(places), size))
    weights[rows, before] += 1 - share
    weights[rows, after] += share
    return weights


def _antialiased(size: int, target: int) -> Matrix:
    step = size / target
    width = max(step, 1.0)
    centres = (np.arange(target) + 0.5) * step
    weights = np.maximum(1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / width, 0)
    return weights / weights.sum(1, keepdims=True)


RULES: Mapping[str, Callable[[int, int], Matrix]] = {
    "tf1": _tf1,
    "half-pixel": _half_pixel,
    "antialiased": _antialiased,
}


@dataclass(frozen=True)
class Resize:
    """To `size` x `size` by a rule of `RULES`: with `crop`, the shorter side to it and the centre of the longer one, else both sides."""

    size: int
    rule: str
    crop: bool = False

    def matrices(self, height: int, width: int) -> tuple[Matrix, Matrix]:
        """For rows and for columns of frames of this size."""
        sizes = (self.size, self.size)
        if self.crop:
            scale = self.size / min(height, width)
            sizes = (math.ceil(height * scale), math.ceil(width * scale))
            sizes = (self.size, sizes[1]) if height < width else (sizes[0], self.size)
        rows, columns = (RULES[self.rule](side, target) for side, target in zip((height, width), sizes))
        starts = [(target - self.size) // 2 for target in sizes]
        return rows[starts[0] :][: self.size], columns[starts[1] :][: self.size]

    def on_host(self, frames: Any) -> Float[np.ndarray, "*n size size c"]:
        """float32 frames; the size they have already is left as it is."""
        frames = np.asarray(frames, np.float32)
        if frames.shape[-3:-1] == (self.size, self.size):
            return frames
        rows, columns = (matrix.astype(np.float32) for matrix in self.matrices(*frames.shape[-3:-1]))
        return _apply(np, rows, columns, frames)

    def on_device(self, frames: Float[Array, "*n h w c"]) -> Float[Array, "*n size size c"]:
        """The same within a program."""
        if frames.shape[-3:-1] == (self.size, self.size):
            return frames
        rows, columns = (jnp.asarray(matrix, jnp.float32) for matrix in self.matrices(*frames.shape[-3:-1]))
        with jax.default_matmul_precision("highest"):
            return _apply(jnp, rows, columns, frames)


def _apply(numpy: Any, rows: Any, columns: Any, frames: Any) -> Any:
    """Columns first, where they shrink, so that fewer are left for the rows."""
    wide = numpy.einsum("pw,...hwc->...hpc", columns, frames)
    return numpy.einsum("qh,...hpc->...qpc", rows, wide)
