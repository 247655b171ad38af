"""Where activations lie, said in words and only where the compiler would not find it by itself.

A constraint counts on the mesh in force (`jax.set_mesh`), and is nothing without one: models run unchanged on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from walt.parallel.mesh import BATCH_AXES

MESH_AXES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "context": ("context",),  # positions of one example: rows of a frame, windows, or the queries of a window
    "heads": ("tensor",),
    "mlp": ("tensor",),
}


def constrain(x: Array, *axes: str | None) -> Array:
    """`x` with its dimensions divided over the mesh as these words say, whole along None; a dimension that does not divide stays whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(x, axes))


def on_each_device(
    function: Callable[..., Array], inputs: tuple[Any, ...], axes: tuple[Any, ...], output: tuple[str | None, ...]
) -> Array:
    """`function(*inputs)` run by each device on its own part, for what the compiler cannot divide by itself, such as a kernel.

    `axes` has the words of each input's dimensions, in the same structure (words of absent inputs are ignored), `output` those of the result. They
    must divide: what is whole for one input cannot be divided for another.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*inputs)
    specs = jax.tree.map(
        lambda x, words: None if x is None else _words(words), inputs, axes, is_leaf=lambda x: x is None
    )
    return jax.shard_map(function, in_specs=specs, out_specs=_words(output), check_vma=False)(*inputs)


def _words(axes: Sequence[str | None]) -> PartitionSpec:
    return PartitionSpec(*(None if word is None else MESH_AXES[word] for word in axes))


def _spec(x: Array, axes: Sequence[str | None]) -> PartitionSpec:
    mesh, spec = jax.sharding.get_abstract_mesh(), []
    for size, word in zip(x.shape, axes, strict=True):
        over = MESH_AXES[word] if word is not None else ()
        spec.append(over if over and size % math.prod(mesh.shape[axis] for axis in over) == 0 else None)
    return PartitionSpec(*spec)


def axis_size(word: str) -> int:
    """Over how many devices of the mesh in force this axis is divided; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in MESH_AXES[word])
