"""What a forward pass costs, counted from the config: products only, as is usual for model FLOPs."""

from __future__ import annotations

import math

from walt.transformer.config import TransformerConfig


def transformer_flops(config: TransformerConfig, text_length: int = 0) -> float:
    """FLOPs (two per multiply-add) of one row without padding of windows; `text_length` tokens of one caption per frame."""
    frames, width = config.grid[0], config.width
    patches = tokens = math.prod(config.grid)
    beside = 0  # tokens beside the patches of a frame
    if config.adaln == "none":
        beside = 1 + (config.num_classes is not None) + text_length
        tokens += frames * beside
    windows = [config.spatial_window] * config.depth
    if config.spacetime_window is not None:
        windows[1::2] = [config.spacetime_window] * (config.depth // 2)
    total = 0.0
    for window in windows:
        seen = math.prod(min(side, grid) for side, grid in zip(window, config.grid, strict=True)) + beside
        total += 2 * tokens * width * (4 * width + 2 * seen) + 4 * tokens * width * config.mlp_ratio * width
        if config.text_width is not None and config.adaln != "none":
            spatial = math.prod(min(a, b) for a, b in zip(config.spatial_window[1:], config.grid[1:], strict=True))
            total += 2 * tokens * width * (4 * width + 2 * (spatial + text_length))
            total += 4 * frames * text_length * width * width
        total += _modulation(config, frames)
    patch = config.patch**2
    if config.long_skips:
        total += (config.units // 2) * 4 * tokens * width**2
    return total + 2 * patches * width * patch * (config.in_channels + config.out_channels)


def _modulation(config: TransformerConfig, frames: int) -> float:
    """Products of a layer's own AdaLN maps (the shared one is small beside a single layer)."""
    size = 6 * config.width
    per_frame = {
        "none": 0,
        "shared": 0,
        "lora": config.lora_rank * (config.width + size),
        "separate": config.width * size,
    }
    return 2.0 * frames * per_frame[config.adaln]
