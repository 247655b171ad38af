"""A trained transformer for another size of video: position tables and relative biases are interpolated, the rest is kept.

W.A.L.T fine-tunes its text-to-video model from square to 9:16 in this way (arXiv 2312.06662, section 5).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt.config import ConfigError
from walt.training.task import Tree
from walt.transformer.config import Size3, TransformerConfig

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
            for layer in ("spatial", "spacetime"):
                before, after = (getattr(config, f"{layer}_window") for config in (old, new))
                if blocks is not None and before is not None:
                    bias = blocks[layer]["attention"]["relative_bias"]
                    bias["table"] = _resized_bias(bias["table"], before, old.grid, after, new.grid)
    return params


def resized_config(config: TransformerConfig, sides: tuple[int, int]) -> TransformerConfig:
    """The config for latents of another height and width. Windows that covered a side of the old grid cover that of the new one, and others keep
    their size."""
    if tuple(sides) == config.latent_shape[1:]:
        return config
    old, new = config.grid[1:], tuple(side // config.patch for side in sides)

    def fitted(window: Size3 | None) -> Size3 | None:
        if window is None:
            return None
        height, width = (n if size >= o else size for size, o, n in zip(window[1:], old, new, strict=True))
        return window[0], height, width

    windows: dict[str, Any] = {name: fitted(getattr(config, name)) for name in SIZES[1:]}
    return dataclasses.replace(config, latent_shape=(config.latent_shape[0], *sides), **windows)


def _resized_bias(table: Array, before: Size3, old_grid: Size3, after: Size3, new_grid: Size3) -> np.ndarray:
    """A table of biases [blocks, heads, offsets…], with an offset at each whole number from -(side - 1) to side - 1, for other windows.

    Of windows that were larger than their grid only the offsets within it were trained: those are stretched to the ones that the new grid
    has, and the outermost stand for what lies beyond.
    """
    trained, wanted = np.minimum(before, old_grid), np.minimum(after, new_grid)
    middle = (slice(None), slice(None), *(slice(b - t, b + t - 1) for b, t in zip(before, trained)))
    stretched = _interpolated(table[middle], (2, 3, 4), tuple(2 * side - 1 for side in wanted))
    return np.pad(stretched, ((0, 0), (0, 0), *((a - w, a - w) for a, w in zip(after, wanted))), mode="edge")


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
