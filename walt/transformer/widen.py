"""A trained transformer for more input channels: those of what it is newly told begin at zero, so that it starts as the model it was."""

from __future__ import annotations

import jax
import numpy as np

from walt.config import ConfigError
from walt.training.task import Tree
from walt.transformer.config import TransformerConfig

CHANNELS = ("in_channels", "self_conditioning", "canvas")


def widen(params: Tree, old: TransformerConfig, new: TransformerConfig) -> Tree:
    """Parameters of `old` for `new`, which has self-conditioning or a canvas besides. Where these are zero it predicts what `old` does.

    Raises:
      ConfigError: they differ in the other parts of the patch embedding, or `new` lacks channels that `old` has.
    """
    before, after = old.channel_parts(), new.channel_parts()
    for name in ("patch", "width", "out_channels", "low_resolution"):
        if getattr(old, name) != getattr(new, name):
            raise ConfigError(
                f"transformer.{name} is {getattr(new, name)!r}, but the trained model has {getattr(old, name)!r}; only {', '.join(CHANNELS)} may change"
            )
    if missing := [name for name in before if name not in after]:
        raise ConfigError(f"the trained model has channels {', '.join(missing)}, which this transformer has not")
    params = jax.tree.map(lambda leaf: leaf, params)  # a copy of the dicts
    kernel = np.asarray(params["patch_embedding"]["kernel"])
    places = kernel.reshape(old.patch**2, old.in_channels, -1)
    parts = dict(zip(before, np.split(places, np.cumsum(list(before.values()))[:-1], axis=1), strict=True))
    zeros = {name: np.zeros((len(places), size, places.shape[-1]), kernel.dtype) for name, size in after.items()}
    wide = np.concatenate([parts.get(name, zeros[name]) for name in after], axis=1)
    params["patch_embedding"]["kernel"] = wide.reshape(-1, kernel.shape[-1])
    return params
