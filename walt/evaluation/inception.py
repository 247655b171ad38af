"""Inception-v3 as the Fréchet inception distance and the Inception score use it, at inference: 2,048 features and the logits of 1,008 classes.

It is the network of TensorFlow's release of 2015-12-05 (Szegedy et al., 2015, arXiv:1512.00567), in the version that the FID community ported
to PyTorch (pt_inception-2015-12-05): its average pools leave the padding out of their means, and the pool of the last block takes maxima.
Everything is float32 at the highest precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.efficientnet import Frozen
from walt.training.task import Tree

SIDE = 299
FEATURES, CLASSES = 2048, 1008
EPSILON = 1e-3

AVERAGE, LARGEST = "average", "largest"
Step = tuple[str, int, int, int, int] | tuple[Any, ...] | str
"""A unit (name, channels out, height and width of its kernel, stride), units that see the same side by side, or a pool of 3x3."""


def _unit(name: str, channels: int, height: int = 1, width: int | None = None, stride: int = 1) -> Step:
    return name, channels, height, height if width is None else width, stride


def _block_35(pool: int) -> tuple[tuple[Step, ...], ...]:
    double = (_unit("branch3x3dbl_1", 64), _unit("branch3x3dbl_2", 96, 3), _unit("branch3x3dbl_3", 96, 3))
    return (
        (_unit("branch1x1", 64),),
        (_unit("branch5x5_1", 48), _unit("branch5x5_2", 64, 5)),
        double,
        (AVERAGE, _unit("branch_pool", pool)),
    )


def _block_17(width: int) -> tuple[tuple[Step, ...], ...]:
    single = (_unit("branch7x7_1", width), _unit("branch7x7_2", width, 1, 7), _unit("branch7x7_3", 192, 7, 1))
    double = (
        _unit("branch7x7dbl_1", width),
        _unit("branch7x7dbl_2", width, 7, 1),
        _unit("branch7x7dbl_3", width, 1, 7),
        _unit("branch7x7dbl_4", width, 7, 1),
        _unit("branch7x7dbl_5", 192, 1, 7),
    )
    return (_unit("branch1x1", 192),), single, double, (AVERAGE, _unit("branch_pool", 192))


def _block_8(pool: str) -> tuple[tuple[Step, ...], ...]:
    single = (_unit("branch3x3_1", 384), (_unit("branch3x3_2a", 384, 1, 3), _unit("branch3x3_2b", 384, 3, 1)))
    double = (
        _unit("branch3x3dbl_1", 448),
        _unit("branch3x3dbl_2", 384, 3),
        (_unit("branch3x3dbl_3a", 384, 1, 3), _unit("branch3x3dbl_3b", 384, 3, 1)),
    )
    return (_unit("branch1x1", 320),), single, double, (pool, _unit("branch_pool", 192))


BLOCKS: Mapping[str, tuple[tuple[Step, ...], ...]] = {
    "Mixed_5b": _block_35(32),
    "Mixed_5c": _block_35(64),
    "Mixed_5d": _block_35(64),
    "Mixed_6a": (
        (_unit("branch3x3", 384, 3, stride=2),),
        (_unit("branch3x3dbl_1", 64), _unit("branch3x3dbl_2", 96, 3), _unit("branch3x3dbl_3", 96, 3, stride=2)),
        (f"{LARGEST} of 2",),
    ),
    "Mixed_6b": _block_17(128),
    "Mixed_6c": _block_17(160),
    "Mixed_6d": _block_17(160),
    "Mixed_6e": _block_17(192),
    "Mixed_7a": (
        (_unit("branch3x3_1", 192), _unit("branch3x3_2", 320, 3, stride=2)),
        (
            _unit("branch7x7x3_1", 192),
            _unit("branch7x7x3_2", 192, 1, 7),
            _unit("branch7x7x3_3", 192, 7, 1),
            _unit("branch7x7x3_4", 192, 3, stride=2),
        ),
        (f"{LARGEST} of 2",),
    ),
    "Mixed_7b": _block_8(AVERAGE),
    "Mixed_7c": _block_8(LARGEST),
}
STEM = (  # name, channels, kernel, stride, padded; after the third and the last a pool of 3x3 with stride 2
    ("Conv2d_1a_3x3", 32, 3, 2, False),
    ("Conv2d_2a_3x3", 32, 3, 1, False),
    ("Conv2d_2b_3x3", 64, 3, 1, True),
    ("Conv2d_3b_1x1", 80, 1, 1, False),
    ("Conv2d_4a_3x3", 192, 3, 1, False),
)
POOLED_AFTER = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")


class Unit(nnx.Module):
    """Convolution, batch norm by stored statistics, ReLU."""

    def __init__(self, in_channels: int, channels: int, height: int, width: int, stride: int, padded: bool):
        self.kernel = Frozen(jnp.zeros((height, width, in_channels, channels)))
        self.mean, self.scale, self.bias = (Frozen(jnp.zeros(channels)) for _ in range(3))
        self.stride, self.padding = stride, "SAME" if padded else "VALID"

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        strides, kernel = (self.stride, self.stride), self.kernel[...]
        x = jax.lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return nnx.relu((x - self.mean[...]) * self.scale[...] + self.bias[...])


class Mixed(nnx.Module):
    """An Inception block: several views of the input, side by side."""

    def __init__(self, in_channels: int, branches: Sequence[Sequence[Step]]):
        self.branches = branches
        self.channels = 0
        for branch in branches:
            width = in_channels
            for step in branch:
                if isinstance(step, str):
                    continue
                units = step if isinstance(step[0], tuple) else (step,)
                for name, channels, height, across, stride in units:
                    setattr(self, name, Unit(width, channels, height, across, stride, padded=stride == 1))
                width = sum(unit[1] for unit in units)
            self.channels += width

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        return jnp.concatenate([self._view(x, branch) for branch in self.branches], axis=-1)

    def _view(self, x: Array, branch: Sequence[Step]) -> Array:
        for step in branch:
            if isinstance(step, str):
                x = _average(x) if step == AVERAGE else _largest(x, 2 if step.endswith("2") else 1)
            elif isinstance(step[0], tuple):
                x = jnp.concatenate([getattr(self, unit[0])(x) for unit in step], axis=-1)
            else:
                x = getattr(self, step[0])(x)
        return x


class InceptionV3(nnx.Module):
    """Images in [-1, 1], of 299x299 in all protocols, to features and logits; all zero until given weights."""

    def __init__(self) -> None:
        channels = 3
        for name, width, size, stride, padded in STEM:
            setattr(self, name, Unit(channels, width, size, size, stride, padded))
            channels = width
        for name, branches in BLOCKS.items():
            block = Mixed(channels, branches)
            setattr(self, name, block)
            channels = block.channels
        self.kernel = Frozen(jnp.zeros((FEATURES, CLASSES)))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b 3056"]:
        """The 2,048 means over positions, then the 1,008 logits without their bias, as the Inception score has them."""
        with jax.default_matmul_precision("highest"):
            x = images
            for name, *_ in STEM:
                x = getattr(self, name)(x)
                if name in POOLED_AFTER:
                    x = _largest(x, 2)
            for name in BLOCKS:
                x = getattr(self, name)(x)
            means = x.mean(axis=(1, 2))
            return jnp.concatenate([means, means @ self.kernel[...]], axis=1)


def _largest(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b i j c"]:
    """Over 3x3; with stride 1 padded to the same size, with stride 2 not at all."""
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Over those of 3x3 that lie within the picture."""
    total = lambda a: jax.lax.reduce_window(a, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")  # noqa: E731
    return total(x) / total(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


def unit_names() -> tuple[str, ...]:
    """Of all units, as the state dict has them: "Conv2d_1a_3x3", ..., "Mixed_7c.branch_pool"."""
    names = [name for name, *_ in STEM]
    for block, branches in BLOCKS.items():
        for step in (step for branch in branches for step in branch if not isinstance(step, str)):
            units = step if isinstance(step[0], tuple) else (step,)
            names += [f"{block}.{unit[0]}" for unit in units]
    return tuple(names)


def weight_tree(arrays: Mapping[str, np.ndarray], epsilon: float = EPSILON) -> Tree:
    """The tree of `InceptionV3` from the arrays of a state dict."""
    tree: Tree = {"kernel": jnp.asarray(arrays["fc.weight"].T)}
    for unit in unit_names():
        block, _, branch = unit.partition(".")
        place = tree.setdefault(block, {}) if branch else tree
        scale = arrays[f"{unit}.bn.weight"] / np.sqrt(arrays[f"{unit}.bn.running_var"].astype(np.float64) + epsilon)
        place[branch or block] = {
            "kernel": jnp.asarray(np.transpose(arrays[f"{unit}.conv.weight"], (2, 3, 1, 0))),
            "mean": jnp.asarray(arrays[f"{unit}.bn.running_mean"]),
            "bias": jnp.asarray(arrays[f"{unit}.bn.bias"]),
            "scale": jnp.asarray(scale, jnp.float32),
        }
    return tree


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the arrays that `weight_tree` takes, by their names in the state dict."""
    from walt.training.module import Functional

    tree = Functional(lambda _: InceptionV3()).abstract_extra
    found: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, FEATURES)}
    for unit in unit_names():
        block, _, branch = unit.partition(".")
        height, width, inward, outward = (tree[block][branch] if branch else tree[block])["kernel"].shape
        found[f"{unit}.conv.weight"] = (outward, inward, height, width)
        found.update({f"{unit}.bn.{name}": (outward,) for name in ("weight", "bias", "running_mean", "running_var")})
    return found
