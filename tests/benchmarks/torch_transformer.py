"""The denoising transformer in PyTorch: an independent implementation, for parity tests and as the speed to be measured against.

Videos and classes, AdaLN-LoRA, windows that divide the grid; attention is torch's own `scaled_dot_product_attention`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from walt.transformer.config import TransformerConfig


def tensors(tree: dict) -> nn.Module:
    """A nested dict of arrays as modules of parameters, by the same names."""
    module = nn.Module()
    for name, value in tree.items():
        if isinstance(value, dict):
            module.add_module(name, tensors(value))
        else:
            module.register_parameter(name, nn.Parameter(torch.tensor(np.asarray(value))))
    return module


def linear(x: torch.Tensor, layer: nn.Module, index: int | None = None) -> torch.Tensor:
    pick = (lambda p: p) if index is None else (lambda p: p[index])
    y = x @ pick(layer.kernel)
    return y + pick(layer.bias) if hasattr(layer, "bias") else y


def norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class TorchTransformer(nn.Module):
    """Takes the parameters of `walt.transformer.Transformer`."""

    def __init__(self, config: TransformerConfig, params: dict):
        super().__init__()
        self.config, self.weights = config, tensors(params)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """[B, F, h, w, Cin], [B, F], [B, F] -> [B, F, h, w, Cout]."""
        weights, conditioning = self.weights, self.weights.conditioning
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        angles = timestep[..., None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1)
        condition = linear(F.silu(linear(features, conditioning.timestep_in)), conditioning.timestep_out)
        condition = condition + conditioning.class_table[label]
        shared = linear(F.silu(condition), conditioning.modulation)
        x = linear(latents, weights.patch_embedding)
        x = x + weights.position.spatial + weights.position.temporal[: x.shape[1], None, None]
        for index in range(self.config.units):
            for layer, window in (
                (weights.blocks.spatial, self.config.spatial_window),
                (weights.blocks.spacetime, self.config.spacetime_window),
            ):
                x = self._layer(x, layer, index, window, condition, shared)
        shift, scale = linear(F.silu(condition), weights.final.modulation)[:, :, None, None].chunk(2, -1)
        return linear(norm(x) * (1 + scale) + shift, weights.final.projection)

    def _layer(self, x, layer, index, window, condition, shared):
        low = linear(linear(condition, layer.modulation.down, index), layer.modulation.up, index)
        shift, scale, gate, shift2, scale2, gate2 = (shared + low)[:, :, None, None].chunk(6, -1)
        x = x + gate * self._attention(norm(x) * (1 + scale) + shift, layer.attention, index, window)
        hidden = F.gelu(linear(norm(x) * (1 + scale2) + shift2, layer.mlp.up, index), approximate="tanh")
        return x + gate2 * linear(hidden, layer.mlp.down, index)

    def _attention(self, x, attention, index, window):
        grid, heads = x.shape[1:4], self.config.heads
        size = [min(a, b) for a, b in zip(window, grid, strict=True)]
        query, key, value = (
            self._split(linear(x, getattr(attention, name), index), size, heads) for name in ("query", "key", "value")
        )
        query = norm(query) * attention.query_norm.scale[index]
        key = norm(key) * attention.key_norm.scale[index]
        bias = self._bias(attention.relative_bias.table[index], window, size)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.expand(query.shape[0], -1, -1, -1))
        return linear(self._merge(mixed, x.shape, size), attention.out, index)

    @staticmethod
    def _split(x, size, heads):
        """[B, T, H, W, d] -> [B windows, heads, n, d / heads]."""
        b, t, h, w, d = x.shape
        x = x.reshape(b, t // size[0], size[0], h // size[1], size[1], w // size[2], size[2], heads, d // heads)
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(-1, heads, math.prod(size), d // heads)

    @staticmethod
    def _merge(x, shape, size):
        b, t, h, w = shape[:4]
        counts = (t // size[0], h // size[1], w // size[2])
        x = x.reshape(b, *counts, x.shape[1], *size, x.shape[-1])
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4, 8).reshape(shape)

    @staticmethod
    def _bias(table, window, size):
        """[heads, n, n] from one entry per offset (key minus query)."""
        places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij"), -1).reshape(-1, 3)
        offsets = places[None] - places[:, None] + torch.tensor(window) - 1
        return table[:, offsets[..., 0], offsets[..., 1], offsets[..., 2]]
