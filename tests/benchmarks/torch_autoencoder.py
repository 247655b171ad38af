"""The autoencoder of `walt.autoencoder.model` in PyTorch: written a second time, on its layers, to compare results and speed with.

Layout is PyTorch's own, [batch, channel, time, height, width]. Needs torch; nothing of the package is used but the config.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from walt.autoencoder.config import AutoencoderConfig


class CausalConv(nn.Module):
    def __init__(self, cin, cout, kernel, strides=(1, 1, 1), bias=True):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(cout, cin, *kernel))
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None
        (t, h, w), self.strides = kernel, strides
        self.padding = ((w - 1) // 2, w // 2, (h - 1) // 2, h // 2, t - 1, 0)

    def forward(self, x):
        x = F.pad(x, self.padding, mode="replicate") if any(self.padding) else x
        return F.conv3d(x, self.kernel, self.bias, self.strides)


class GroupNorm(nn.Module):
    """Statistics per frame: frames become rows of the batch."""

    def __init__(self, channels, groups, affine=True):
        super().__init__()
        self.groups = groups
        self.scale = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def forward(self, x):
        frames = x.transpose(1, 2)
        y = F.group_norm(frames.flatten(0, 1), self.groups, self.scale, self.bias, eps=1e-6)
        return y.unflatten(0, frames.shape[:2]).transpose(1, 2)


class ResBlock(nn.Module):
    def __init__(self, cin, cout, time, config):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(cin, config.groups), CausalConv(cin, cout, (time, 3, 3), bias=False)
        self.norm2, self.conv2 = GroupNorm(cout, config.groups), CausalConv(cout, cout, (time, 3, 3), bias=False)
        self.shortcut = None if cin == cout else CausalConv(cin, cout, (1, 1, 1), bias=False)

    def forward(self, x):
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AdaptiveNorm(nn.Module):
    def __init__(self, channels, config):
        super().__init__()
        self.norm = GroupNorm(channels, config.groups, affine=False)
        self.modulation = CausalConv(config.latent_channels, 2 * channels, (1, 1, 1))

    def forward(self, x, latents):
        y = self.modulation(latents)
        _, _, frames, height, width = x.shape
        time = 1 if y.shape[2] == 1 else (frames - 1) // (y.shape[2] - 1)
        for axis, repeats in ((2, time), (3, height // y.shape[3]), (4, width // y.shape[4])):
            y = y.repeat_interleave(repeats, dim=axis)
        scale, shift = y[:, :, time - 1 :].chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch, widths = config.patchify, config.widths
        self.stem = CausalConv(3 * self.patch**2, widths[0], (config.temporal_kernels[0], 3, 3))
        stages, channels = [], widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.res_blocks):
                stages.append(ResBlock(channels, width, config.temporal_kernels[level], config))
                channels = width
            if level < len(config.strides):
                time, space = config.strides[level]
                down = (config.down_kernel,) * 3
                if config.time_factor == 1:
                    down = (1, *down[1:])
                stages.append(CausalConv(channels, channels, down, (time, space, space)))
        stages += [ResBlock(channels, channels, config.temporal_kernels[-1], config) for _ in range(config.mid_blocks)]
        self.stages = nn.ModuleList(stages)
        self.norm = GroupNorm(channels, config.groups)
        self.head = CausalConv(channels, config.latent_channels, (1, 1, 1))

    def forward(self, video):
        b, c, t, h, w = video.shape
        p = self.patch
        x = video.reshape(b, c, t, h // p, p, w // p, p).permute(0, 4, 6, 1, 2, 3, 5)
        x = self.stem(x.reshape(b, p * p * c, t, h // p, w // p))
        for stage in self.stages:
            x = stage(x)
        return self.head(F.silu(self.norm(x)))


class DecoderLevel(nn.Module):
    def __init__(self, channels, width, time, stride, config):
        super().__init__()
        self.norm, self.stride = AdaptiveNorm(channels, config), stride
        widths = [channels] + [width] * config.res_blocks
        self.blocks = nn.ModuleList(ResBlock(a, b, time, config) for a, b in itertools.pairwise(widths))
        if stride is not None:
            self.up = CausalConv(width, width * stride[0] * stride[1] ** 2, (time, 3, 3))

    def forward(self, x, latents):
        x = self.norm(x, latents)
        for block in self.blocks:
            x = block(x)
        return x if self.stride is None else depth_to_space(self.up(x), *self.stride)


def depth_to_space(x, time, space):
    b, d, t, h, w = x.shape
    c = d // (time * space * space)
    x = x.reshape(b, time, space, space, c, t, h, w).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return x.reshape(b, c, t * time, h * space, w * space)[:, :, time - 1 :]


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        widths, last, first = config.widths, config.temporal_kernels[-1], config.temporal_kernels[0]
        self.patch = config.patchify
        self.stem = CausalConv(config.latent_channels, widths[-1], (last, 3, 3))
        self.mid = nn.ModuleList(ResBlock(widths[-1], widths[-1], last, config) for _ in range(config.mid_blocks))
        levels, channels = [], widths[-1]
        for level in reversed(range(len(widths))):
            stride = config.strides[level - 1] if level else None
            levels.append(DecoderLevel(channels, widths[level], config.temporal_kernels[level], stride, config))
            channels = widths[level]
        self.levels = nn.ModuleList(levels)
        self.norm = GroupNorm(channels, config.groups)
        self.head = CausalConv(channels, 3 * self.patch**2, (first, 3, 3))

    def forward(self, latents):
        x = self.stem(latents)
        for block in self.mid:
            x = block(x)
        for level in self.levels:
            x = level(x, latents)
        return depth_to_space(self.head(F.silu(self.norm(x))), 1, self.patch)


class TorchAutoencoder(nn.Module):
    """Encoder and decoder of raw latents, with the weights of ours (the nested dict of `nnx.to_pure_dict`)."""

    def __init__(self, config: AutoencoderConfig, params: dict):
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        given = {name: value for part in ("encoder", "decoder") for name, value in _flat(params[part], part)}
        self.load_state_dict(given)

    def forward(self, video):
        return self.decoder(self.encoder(video))


def to_torch(video: np.ndarray) -> torch.Tensor:
    """[b, t, h, w, c] to PyTorch's layout."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(video), -1, 1)))


def from_torch(x: torch.Tensor) -> np.ndarray:
    """Back to [b, t, h, w, c]."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def _flat(tree, path):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.{name}")
        else:
            value = np.asarray(value, np.float32)
            yield (
                f"{path}.{name}",
                torch.from_numpy(value.transpose(4, 3, 0, 1, 2).copy() if value.ndim == 5 else value.copy()),
            )
