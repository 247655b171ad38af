"""Where parameters lie: path pattern → logical axes → mesh axes.

A model describes its parameters once, in words ("embed", "heads", …), in a table of path patterns; one set of rules
says which mesh axis carries which word. A parameter that no pattern names is spread over `fsdp` along its largest
dimension that divides evenly, which is right (if not always fastest) for any model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from walt.config import ConfigError

ParameterAxes = Sequence[tuple[str, tuple[str | None, ...]]]
"""Rows of (regular expression for the end of a "/"-joined path, logical axis of each dimension); the first that matches
counts.
"""


@dataclass(frozen=True)
class AxisRules:
    """Logical axis → mesh axis. Logical axes that are absent stay whole on every device."""

    rules: tuple[tuple[str, str | None], ...] = (
        ("embed", "fsdp"),
        ("mlp", "tensor"),
        ("heads", "tensor"),
        ("vocab", "tensor"),
        ("channels", "fsdp"),
    )

    def spec(self, axes: Sequence[str | None], name: str = "array") -> PartitionSpec:
        """The `PartitionSpec` of an array with these logical axes; `ConfigError` if two of them fall on one mesh
        axis.
        """
        table = dict(self.rules)
        mesh_axes = [table.get(axis) if axis is not None else None for axis in axes]
        used = [axis for axis in mesh_axes if axis is not None]
        for axis in used:
            if used.count(axis) > 1:
                clash = [str(logical) for logical, target in zip(axes, mesh_axes) if target == axis]
                raise ConfigError(f"{name}: logical axes {' and '.join(clash)} both lie on mesh axis {axis!r}")
        return PartitionSpec(*mesh_axes)


def path_name(path: tuple[Any, ...]) -> str:
    """`"blocks/attention/kernel"` for a `jax.tree_util` key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parameter_shardings(params: Any, mesh: Mesh, axes: ParameterAxes = (), rules: AxisRules | None = None) -> Any:
    """A tree of `NamedSharding` like `params` (arrays or `ShapeDtypeStruct`s).

    `ConfigError` names the parameter when a matching row has another number of dimensions, when two axes collide, or
    when a dimension does not divide.
    """
    rules = rules or AxisRules()

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, logical in axes:
            if re.search(f"(?:{pattern})$", name):
                return NamedSharding(mesh, _checked(rules.spec(logical, name), name, leaf.shape, mesh.shape))
        return NamedSharding(mesh, _largest_dimension(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(sharding, params)


def replicated_share(params: Any, shardings: Any) -> float:
    """The share of the bytes of `params` that every device of the mesh holds whole."""
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]
    whole = [sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings)]
    return sum(size for size, same in zip(sizes, whole) if same) / max(1, sum(sizes))


def _checked(spec: PartitionSpec, name: str, shape: tuple[int, ...], mesh_shape: Mapping[str, int]) -> PartitionSpec:
    if len(spec) != len(shape):
        raise ConfigError(f"{name} has shape {shape}, but its row of the axis table names {len(spec)} dimensions")
    for size, axis in zip(shape, spec):
        if axis is not None and size % mesh_shape[axis]:
            raise ConfigError(
                f"{name} has shape {shape}: {size} does not divide over mesh axis {axis}={mesh_shape[axis]}"
            )
    return spec


def _largest_dimension(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    divisible = [dim for dim, size in enumerate(shape) if devices > 1 and size and size % devices == 0]
    if len(shape) < 2 or not divisible:
        # Vectors are small: gathering them costs more than keeping them.
        return PartitionSpec()
    largest = max(divisible, key=lambda dim: shape[dim])
    return PartitionSpec(*("fsdp" if dim == largest else None for dim in range(len(shape))))
