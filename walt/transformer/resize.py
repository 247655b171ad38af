"""A trained transformer for another size of video: position tables and relative biases are interpolated, the rest is kept.

W.A.L.T fine-tunes its text-to-video model from square to 9:16 in this way (arXiv 2312.06662, section 5).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.training.task import Tree
from walt.transformer.config import TransformerConfig

SIZES = ("latent_shape", "spatial_window", "spacetime_window")


def resize(params: Tree, old: TransformerConfig, new: TransformerConfig) -> Tree:
    """Parameters of `old` for `new`, which may differ in the sizes of videos and windows.

    Raises:
      ConfigError: they differ in anything else, or one has spatiotemporal layers and the other has not.
    """
    for field in dataclasses.fields(old):
        kept = field.name not in SIZES and field.name not in ("dtype", "remat")
        if kept and getattr(old, field.name) != getattr(new, field.name):
            raise ConfigError(
                f"transformer.{field.name} is {getattr(new, field.name)!r}, but the trained model has {getattr(old, field.name)!r}; "
                f"only {', '.join(SIZES)} may change"
            )
    if (old.spacetime_window is None) != (new.spacetime_window is None):
        raise ConfigError(
            "transformer.spacetime_window: a model without spatiotemporal layers cannot be given any, nor lose them"
        )
    params = jax.tree.map(lambda leaf: leaf, params)  # a copy of the dicts
    if old.position == "learned":
        position = params["position"]
        position["spatial"] = _interpolated(position["spatial"], (0, 1), new.grid[1:])
        position["temporal"] = _interpolated(position["temporal"], (0,), new.grid[:1])
    if old.relative_bias:
        for blocks in (params["blocks"], params.get("joining_blocks")):
            for layer, window in (("spatial", new.spatial_window), ("spacetime", new.spacetime_window)):
                if blocks is not None and window is not None:
                    bias = blocks[layer]["attention"]["relative_bias"]
                    # [blocks, heads, offsets...], an offset at each whole number from -(side - 1) to side - 1.
                    bias["table"] = _interpolated(bias["table"], (2, 3, 4), tuple(2 * side - 1 for side in window))
    return params


def _interpolated(table: Array, axes: tuple[int, ...], sizes: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """The table at other sizes along some axes, stretched so that its first and last entries stay first and last."""
    table = jnp.asarray(table, jnp.float32)
    for axis, size in zip(axes, sizes, strict=True):
        table = jnp.moveaxis(_along_first(jnp.moveaxis(table, axis, 0), size), 0, axis)
    return np.asarray(table)


def _along_first(table: Array, size: int) -> Array:
    """Linear interpolation at `size` points from the first entry to the last."""
    if table.shape[0] == size:
        return table
    if table.shape[0] == 1 or size == 1:
        return jnp.repeat(table[table.shape[0] // 2][None], size, axis=0)
    places = jnp.linspace(0, table.shape[0] - 1, size)
    below = jnp.clip(jnp.floor(places).astype(int), 0, table.shape[0] - 2)
    share = (places - below).reshape(-1, *(1,) * (table.ndim - 1))
    return (1 - share) * table[below] + share * table[below + 1]
