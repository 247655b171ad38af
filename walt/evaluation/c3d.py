"""C3D, a video classifier whose logits the Inception score of videos is made of (Tran et al., 2015, arXiv:1412.0767), at inference.

Sixteen frames of 112x112 to the logits of as many classes as the weights have: 101 for UCF-101, 487 for Sports-1M. Names of weights and the padding
of the last pool are those of the usual PyTorch versions. Everything is float32 at the highest precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.convolution import convolve
from walt.autoencoder.efficientnet import Frozen
from walt.training.task import Tree

FRAMES, SIDE, RESIZED = 16, 112, 128
CONVOLUTIONS = {
    "conv1": 64,
    "conv2": 128,
    "conv3a": 256,
    "conv3b": 256,
    "conv4a": 512,
    "conv4b": 512,
    "conv5a": 512,
    "conv5b": 512,
}
POOLS = {"conv1": (1, 2, 2), "conv2": (2, 2, 2), "conv3b": (2, 2, 2), "conv4b": (2, 2, 2), "conv5b": (2, 2, 2)}
WIDTH, LAST = 4096, (1, 4, 4, 512)


class Layer(nnx.Module):
    """Weights and bias of a layer."""

    def __init__(self, *shape: int):
        self.kernel, self.bias = Frozen(jnp.zeros(shape)), Frozen(jnp.zeros(shape[-1]))


class C3D(nnx.Module):
    """All zero until given weights."""

    def __init__(self, classes: int):
        channels = 3
        for name, width in CONVOLUTIONS.items():
            setattr(self, name, Layer(3, 3, 3, channels, width))
            channels = width
        self.fc6, self.fc7 = Layer(int(np.prod(LAST)), WIDTH), Layer(WIDTH, WIDTH)
        self.fc8 = Layer(WIDTH, classes)

    def __call__(self, clips: Float[Array, "b 16 h w 3"]) -> Float[Array, "b classes"]:
        """Of the middle 112x112 of frames that are at least as large."""
        top, left = ((side - SIDE) // 2 for side in clips.shape[2:4])
        x = clips[:, :, top : top + SIDE, left : left + SIDE]
        with jax.default_matmul_precision("highest"):
            for name in CONVOLUTIONS:
                layer = getattr(self, name)
                padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
                x = nnx.relu(convolve(padded, layer.kernel[...], (1, 1, 1)) + layer.bias[...])
                if name in POOLS:
                    x = _pooled(x, POOLS[name], 1 if name == "conv5b" else 0)
            x = x.reshape(len(x), -1)
            for layer in (self.fc6, self.fc7):
                x = nnx.relu(x @ layer.kernel[...] + layer.bias[...])
            return x @ self.fc8.kernel[...] + self.fc8.bias[...]


def _pooled(x: Array, window: tuple[int, int, int], pad: int) -> Array:
    padding = ((0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *window, 1), padding)


def weight_tree(arrays: Mapping[str, np.ndarray], _epsilon: float = 0.0) -> Tree:
    """The tree of `C3D` from the arrays of a state dict."""
    tree: Tree = {}
    for name in (*CONVOLUTIONS, "fc6", "fc7", "fc8"):
        weight = arrays[f"{name}.weight"]
        if name == "fc6":  # there channels come before time, height and width
            time, height, width, channels = LAST
            weight = weight.reshape(-1, channels, time, height, width).transpose(0, 2, 3, 4, 1).reshape(len(weight), -1)
        kernel = weight.T if weight.ndim == 2 else np.transpose(weight, (2, 3, 4, 1, 0))
        tree[name] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(arrays[f"{name}.bias"])}
    return tree


def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Of the arrays that `weight_tree` takes, by their names in the state dict."""
    found: dict[str, tuple[int, ...]] = {}
    channels = 3
    for name, width in CONVOLUTIONS.items():
        found |= {f"{name}.weight": (width, channels, 3, 3, 3), f"{name}.bias": (width,)}
        channels = width
    for name, (inward, outward) in {
        "fc6": (int(np.prod(LAST)), WIDTH),
        "fc7": (WIDTH, WIDTH),
        "fc8": (WIDTH, classes),
    }.items():
        found |= {f"{name}.weight": (outward, inward), f"{name}.bias": (outward,)}
    return found
