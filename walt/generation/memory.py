"""Whether a request fits in memory, estimated before anything is compiled."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax
import numpy as np

from walt.autoencoder.config import AutoencoderConfig
from walt.generation.request import GenerationError
from walt.transformer.config import TransformerConfig
from walt.transformer.resize import resized_config

ALIVE = 6
"""Arrays of the tokens' width that live at a time beside the MLP's, and of a picture's channels in the decoder."""


def available(device: jax.Device) -> int | None:
    """Bytes that are free on a device: of its own memory, or of the host's where it has none; None where nobody knows."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def estimate(
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    shape: tuple[int, ...],
    rows: int,
    branches: int,
    reuses: bool = False,
) -> int:
    """Bytes that latents of `shape` (F, h, w, c) need beside the weights: the larger of one layer of the transformer and of the decoder's last level.

    An upper bound within a small factor of what XLA takes on CPUs, not a measurement: scores are counted as if all were kept, before and after
    softmax; a model that `reuses` has the layers twice, once for the first of them.
    """
    frames, height, width = shape[:3]
    config = resized_config(transformer, (height, width))
    tokens = frames * (height // config.patch) * (width // config.patch)
    size = 2 if config.dtype == "bfloat16" else np.dtype(config.dtype).itemsize
    windows = [
        np.minimum(window, (frames, *config.grid[1:])).prod()
        for window in (config.spatial_window, config.spacetime_window)
        if window
    ]
    layer = tokens * (config.width * (ALIVE + config.mlp_ratio) * size + config.heads * int(max(windows)) * 2 * 4)
    layer = layer * 3 // 2 if reuses else layer
    pictures = 1 + (frames - 1) * autoencoder.time_factor
    pixels = pictures * height * width * autoencoder.space_factor**2
    decoder = (
        pixels * autoencoder.base_channels * autoencoder.channel_multipliers[0] * 4 * ALIVE // autoencoder.patchify**2
    )
    return rows * max(branches * layer, decoder + pixels * 3 * 4)


def check_memory(
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    shape: tuple[int, ...],
    rows: int,
    branches: int,
    free: int | None,
    reuses: bool = False,
) -> None:
    """Refuses what does not fit into `free` bytes, naming the largest picture of that shape that does; None refuses nothing.

    Raises:
      GenerationError: it does not fit.
    """
    need = lambda shape: estimate(transformer, autoencoder, shape, rows, branches, reuses)  # noqa: E731
    needed = need(shape)
    if free is None or needed <= free:
        return
    smaller = next((each for each in _smaller(shape, transformer.patch) if need(each) <= free), None)
    space = autoencoder.space_factor
    asked = f"{shape[1] * space}x{shape[2] * space}"
    most = "nothing of that shape fits" if smaller is None else f"{smaller[1] * space}x{smaller[2] * space} would fit"
    fewer = "" if rows == 1 else f", or a smaller batch than {rows}"
    raise GenerationError(
        f"{asked} needs about {needed / 2**30:.1f} GB, and {free / 2**30:.1f} GB are free: {most}{fewer}"
    )


def _smaller(shape: tuple[int, ...], patch: int) -> Iterator[tuple[int, ...]]:
    """The same shape with ever smaller pictures of about its proportions."""
    frames, height, width = shape[:3]
    for share in np.linspace(1, 0, 65)[1:-1]:
        sides = (max(1, int(side * share) // patch) * patch for side in (height, width))
        yield (frames, *sides, *shape[3:])
