"""I3D, the network whose logits the Fréchet video distance compares: an Inception inflated to 3D, trained on Kinetics-400.

After Carreira & Zisserman, 2017 (arXiv:1705.07750), as it is at inference in the TF-Hub module deepmind/i3d-kinetics-400/1, which the
original implementation of the distance calls (Unterthiner et al., 2018, arXiv:1812.01717). Everything is float32 at the highest
precision, on TPUs too: at their default precision the distance is another one. `walt.evaluation.i3d_weights` reads the weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.convolution import Size3, convolve
from walt.autoencoder.efficientnet import Frozen
from walt.evaluation.clips import EvaluationError
from walt.training.module import Functional
from walt.training.task import Tree

SIDE = 224
FEWEST_FRAMES = 9
"""The last pooling takes 2 time steps of every 8 frames, begun ones included."""
LOGITS = 400
EPSILON = 1e-3
"""Of the batch norm, as in the reference. Some PyTorch versions of the network have 1e-5, which moves the logits by about 0.1 %."""

MIXED = {  # widths of the branches: 1x1x1, then 1x1x1 and 3x3x3 twice, then 1x1x1 behind a pooling
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
POOLED_BEFORE: Mapping[str, tuple[Size3, Size3]] = {  # window and strides
    "mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


class Unit(nnx.Module):
    """3D convolution padded as TensorFlow's "SAME", batch norm by stored statistics, and ReLU.

    The mean is taken away before the scale is applied, as in the reference: folded into the bias it would cost digits, and the distance of
    two sets of noise, whose logits are nearly alike, shows it in its seventh digit.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, stride: int = 1):
        self.kernel = Frozen(jnp.zeros((size, size, size, in_channels, out_channels)))
        self.mean, self.scale, self.bias = (Frozen(jnp.zeros(out_channels)) for _ in range(3))
        self.stride = stride

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b s i j d"]:
        strides = (self.stride, self.stride, self.stride)
        padded = _padded(x, self.kernel.shape[:3], strides, 0.0)
        x = convolve(padded, self.kernel[...], strides)
        return nnx.relu((x - self.mean[...]) * self.scale[...] + self.bias[...])


class Mixed(nnx.Module):
    """An Inception block: four views of the input, side by side."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]):
        self.branch_0 = Unit(in_channels, widths[0])
        self.branch_1a, self.branch_1b = Unit(in_channels, widths[1]), Unit(widths[1], widths[2], 3)
        self.branch_2a, self.branch_2b = Unit(in_channels, widths[3]), Unit(widths[3], widths[4], 3)
        self.branch_3 = Unit(in_channels, widths[5])

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w d"]:
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = (
            self.branch_0(x),
            self.branch_1b(self.branch_1a(x)),
            self.branch_2b(self.branch_2a(x)),
            self.branch_3(pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class I3D(nnx.Module):
    """Videos in [-1, 1] to logits; all zero until given weights, see `I3D.load`."""

    def __init__(self) -> None:
        self.conv_1a = Unit(3, 64, 7, 2)
        self.conv_2b = Unit(64, 64)
        self.conv_2c = Unit(64, 192, 3)
        channels = 192
        for name, widths in MIXED.items():
            setattr(self, name, Mixed(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.kernel = Frozen(jnp.zeros((channels, LOGITS)))
        self.bias = Frozen(jnp.zeros(LOGITS))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, epsilon: float = EPSILON) -> I3D:
        """The network with the weights of a file, by default those of the installed extra `fvd`; see `i3d_weights.read` for
        formats and errors."""
        from walt.evaluation import i3d_weights

        model = Functional(lambda _: cls())
        return model.bind({}, weight_tree(i3d_weights.read(path), epsilon))

    def __call__(self, videos: Float[Array, "b t 224 224 3"]) -> Float[Array, "b 400"]:
        """The mean over time of the logits of the classes of Kinetics-400.

        Raises:
          EvaluationError: another size, fewer than nine frames, or no float32.
        """
        check_input(videos)
        with jax.default_matmul_precision("highest"):
            x = max_pool(self.conv_1a(videos), (1, 3, 3), (1, 2, 2))
            x = self.conv_2c(self.conv_2b(x))
            for name in MIXED:
                if name in POOLED_BEFORE:
                    x = max_pool(x, *POOLED_BEFORE[name])
                x = getattr(self, name)(x)
            # The reference takes means over 2x7x7, the logits of each and their mean over time, which is the same: all are linear.
            means = x.mean(axis=(2, 3))
            return ((means[:, :-1] + means[:, 1:]) / 2).mean(axis=1) @ self.kernel[...] + self.bias[...]


def check_input(videos: Any) -> None:
    """Raises `EvaluationError` unless these are float32 [B, T, 224, 224, 3] of at least nine frames."""
    if videos.ndim != 5 or videos.shape[2:] != (SIDE, SIDE, 3):
        raise EvaluationError(f"I3D takes videos [B, T, {SIDE}, {SIDE}, 3], got {list(videos.shape)}")
    if videos.shape[1] < FEWEST_FRAMES:
        raise EvaluationError(f"I3D needs clips of at least {FEWEST_FRAMES} frames, got {videos.shape[1]}")
    if videos.dtype != jnp.float32:
        raise EvaluationError(f"I3D takes float32 in [-1, 1], got {videos.dtype}")


def weight_tree(arrays: Mapping[str, np.ndarray], epsilon: float = EPSILON) -> Tree:
    """The tree of `I3D` from arrays by name, as `i3d_weights.read` gives them."""
    tree: Tree = {"kernel": jnp.asarray(arrays["logits.kernel"][0, 0, 0]), "bias": jnp.asarray(arrays["logits.bias"])}
    for unit in unit_names():
        block, _, branch = unit.partition(".")
        place = tree.setdefault(block, {}) if branch else tree
        place[branch or block] = {
            **{name: jnp.asarray(arrays[f"{unit}.{name}"]) for name in ("kernel", "mean", "bias")},
            "scale": jnp.asarray(1 / np.sqrt(arrays[f"{unit}.variance"].astype(np.float64) + epsilon), jnp.float32),
        }
    return tree


def unit_names() -> tuple[str, ...]:
    """Of all convolutions but the last: "conv_1a", ..., "mixed_3b.branch_0", ..."""
    branches = ("branch_0", "branch_1a", "branch_1b", "branch_2a", "branch_2b", "branch_3")
    return ("conv_1a", "conv_2b", "conv_2c", *(f"{block}.{branch}" for block in MIXED for branch in branches))


def max_pool(x: Float[Array, "b t h w c"], window: Size3, strides: Size3) -> Float[Array, "b s i j c"]:
    """The largest value in each window, padded as TensorFlow's "SAME"; axis by axis, which on a CPU takes a fraction of the time."""
    padded = _padded(x, window, strides, -jnp.inf)
    for axis, (taps, stride) in enumerate(zip(window, strides, strict=True), start=1):
        last = padded.shape[axis] - taps
        views = [jax.lax.slice_in_dim(padded, tap, tap + last + 1, stride, axis) for tap in range(taps)]
        padded = views[0]
        for view in views[1:]:
            padded = jnp.maximum(padded, view)
    return padded


def _padded(x: Array, window: tuple[int, ...], strides: Size3, value: float) -> Array:
    """With what "SAME" pads along time, height and width: ceil(size / stride) windows, an odd place of padding behind."""
    config = [(0, 0, 0)]
    for size, taps, stride in zip(x.shape[1:4], window, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + taps - size, 0)
        config.append((total // 2, total - total // 2, 0))
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [*config, (0, 0, 0)])
