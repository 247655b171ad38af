"""Hyper-parameters of the causal video autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from walt.config import ConfigError


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the first stage (W.A.L.T section 3.1; MAGVIT-v2 appendix). The defaults are the published video model.

    `strides[i]` is the (time, space) reduction between level i and level i + 1; a `patchify` stem reduces space before
    level 0 by folding pixel blocks into channels, which makes high-resolution and CPU runs several times cheaper.
    `temporal_kernels[i]` is the temporal extent of the residual blocks and the upsampling of level i (1 makes them purely
    spatial); the stem and the head use that of level 0, the middle blocks that of the last level. `down_kernel` is the extent of
    the strided convolutions in space, and in time too unless no stride shortens time (an image autoencoder).
    """

    latent_channels: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    res_blocks: int = 4
    mid_blocks: int = 4
    strides: tuple[tuple[int, int], ...] = ((1, 2), (2, 2), (2, 2))
    temporal_kernels: tuple[int, ...] = (3, 3, 3, 3)
    down_kernel: int = 3
    patchify: int = 1
    groups: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        for name in ("latent_channels", "base_channels", "res_blocks", "down_kernel", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"autoencoder.{name} must be at least 1, got {getattr(self, name)}")
        if self.mid_blocks < 0:
            raise ConfigError(f"autoencoder.mid_blocks must be 0 or more, got {self.mid_blocks}")
        levels = len(self.channel_multipliers)
        if len(self.strides) != levels - 1:
            raise ConfigError(f"autoencoder.strides has {len(self.strides)} entries; {levels} levels need {levels - 1}")
        if len(self.temporal_kernels) != levels:
            raise ConfigError(
                f"autoencoder.temporal_kernels has {len(self.temporal_kernels)} entries; it needs one per level, {levels}"
            )
        for width in self.widths:
            if width % self.groups:
                raise ConfigError(
                    f"autoencoder.groups={self.groups} does not divide a level's width of {width} channels"
                )
        if min(self.temporal_kernels) < 1:
            raise ConfigError(f"autoencoder.temporal_kernels must be positive, got {self.temporal_kernels}")
        if self.patchify not in (1, 2, 4):
            raise ConfigError(f"autoencoder.patchify={self.patchify}; it must be 1, 2 or 4")
        for stride in self.strides:
            if len(stride) != 2 or min(stride) < 1:
                raise ConfigError(
                    f"autoencoder.strides holds {stride}; each entry is a pair (time, space) of positive integers"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def time_factor(self) -> int:
        """Pixel frames per latent frame, the first frame aside."""
        return math.prod(time for time, _ in self.strides)

    @property
    def space_factor(self) -> int:
        """Pixels per latent position along a side."""
        return self.patchify * math.prod(space for _, space in self.strides)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latents of a clip; raises `ConfigError` on sizes the encoder does not take."""
        if frames < 1 or (frames - 1) % self.time_factor:
            below = max(frames - 1, 0) // self.time_factor * self.time_factor + 1
            raise ConfigError(
                f"a clip of {frames} frames does not fit: the encoder takes 1 + {self.time_factor}k frames, so {below} or {below + self.time_factor}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % self.space_factor:
                raise ConfigError(
                    f"a {name} of {side} does not fit: the encoder takes multiples of {self.space_factor}"
                )
        return (
            1 + (frames - 1) // self.time_factor,
            height // self.space_factor,
            width // self.space_factor,
            self.latent_channels,
        )

    def clip_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) in pixels of latents of (t, h, w)."""
        return 1 + (frames - 1) * self.time_factor, height * self.space_factor, width * self.space_factor


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the critic (MAGVIT-v2 appendix); the defaults are the published one, 61.3M parameters at 17x128x128."""

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4, 4)
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if self.base_channels < 1 or not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ConfigError(
                "discriminator.base_channels and every entry of discriminator.channel_multipliers must be positive, got "
                f"{self.base_channels} and {self.channel_multipliers}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the first convolution and after each halving."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)


@dataclass(frozen=True)
class AdversarialConfig:
    """The critic and its losses; the weights are the published ones (W.A.L.T, after MAGVIT-v2).

    Attributes:
      weight: of the generator's non-saturating loss.
      r1_weight: of the squared gradient of the critic's logits at real clips, without the usual one half (Mescheder et al., 2018).
      lecam_weight: of LeCAM regularisation (Tseng et al., 2021), which ties the logits to moving averages of the other side's.
      lecam_decay: of those moving averages.
    """

    weight: float = 0.1
    r1_weight: float = 10.0
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self):
        for name in ("weight", "r1_weight", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"adversarial.{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.lecam_decay < 1:
            raise ConfigError(f"adversarial.lecam_decay must be in [0, 1), got {self.lecam_decay}")


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """The stage-1 losses and their weights, all on pixels in [0, 1].

    Attributes:
      mse_weight: of the mean squared error (MAGVIT-v2: 5).
      motion_weight: how much more the squared error of a moving pixel counts than that of a still one [our choice]. Moving
        pixels are those whose values have a standard deviation over time above 0.05 on the [0, 1] scale, as in evaluation.
        Sprites cover a few hundredths of a picture; without this they are the last thing a small model learns.
      difference_weight: of the mean absolute error of the differences between neighbouring frames [our choice]. Squared
        error hardly sees a flicker of one grey level over a still background, but it is most of what moves there.
      latent_noise: standard deviation of noise added to the latents that the decoder is trained on, relative to the spread
        of each channel in a clip [our choice]. What a diffusion model samples is never quite what an encoder makes.
      freeze_encoder: train the decoder alone; latents, and whatever was trained on them, stay valid.
      perceptual: a distance of features of a trained network; None trains without one.
      adversarial: a critic to train against; None trains without one.
    """

    mse_weight: float = 5.0
    motion_weight: float = 0.0
    difference_weight: float = 0.0
    latent_noise: float = 0.0
    freeze_encoder: bool = False
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None

    def __post_init__(self):
        for name in ("mse_weight", "motion_weight", "difference_weight", "latent_noise"):
            if getattr(self, name) < 0:
                raise ConfigError(f"loss.{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class PerceptualConfig:
    """Which features the perceptual distance compares; see `walt.autoencoder.perceptual`.

    Attributes:
      weight: of the distance in the loss (MAGVIT-v2, for a distance of its own: 0.1).
      network: whose features.
      stages: ends of the network's stages, 0 to 6, which reduce a frame by 2, 4, 8, 16, 16, 32 and 32 [our choice: the last
        of each size but the coarsest, which sees little but the border of small frames].
      size: pixels that the shorter side of a frame is resized to first, up or down; None takes frames as they are. Frames
        under 64 pixels leave the deepest stage above less than 4x4 positions, and are better enlarged.
    """

    weight: float = 0.1
    network: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    stages: tuple[int, ...] = (0, 1, 2, 4)
    size: int | None = None

    def __post_init__(self):
        if self.weight < 0:
            raise ConfigError(f"perceptual.weight must be 0 or more, got {self.weight}")
        if not self.stages or list(self.stages) != sorted(set(self.stages) & set(range(7))):
            raise ConfigError(f"perceptual.stages must be increasing numbers from 0 to 6, got {self.stages}")
        if self.size is not None and self.size < 32:
            raise ConfigError(f"perceptual.size={self.size}; it must be at least 32, or None for frames as they are")
