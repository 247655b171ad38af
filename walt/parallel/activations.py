"""Where activations lie, said in words and only where the compiler would not find it by itself.

A constraint counts on the mesh in force (`jax.set_mesh`), and is nothing without one: models run unchanged on one device.
"""

from __future__ import annotations

import math

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
    spec = []
    for size, word in zip(x.shape, axes, strict=True):
        over = MESH_AXES[word] if word is not None else ()
        spec.append(over if over and size % math.prod(mesh.shape[axis] for axis in over) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def axis_size(word: str) -> int:
    """Over how many devices of the mesh in force this axis is divided; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in MESH_AXES[word])
