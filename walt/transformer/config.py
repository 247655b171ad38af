"""The one configuration of the denoising transformer: every model of the paper, and the mini, is a value of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from walt.config import ConfigError

Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and options of `Transformer`; validated on construction (`ConfigError` names the field).

    Attributes:
        latent_shape: latent frames, height and width `(F, h, w)` of one row.
        in_channels: everything on the channel axis of the input: noisy latents, self-conditioning and any other condition.
        out_channels: channels of the prediction.
        width, depth, heads: token width, number of layers (one layer = one attention + one MLP) and attention heads.
        patch: side of the square patch; a patch never spans frames.
        spatial_window: `(1, h, w)` in tokens; clipped to the token grid where larger.
        spacetime_window: `(t, h, w)` in tokens; None makes every layer spatial (the ImageNet model).
        adaln: "shared" (one map for all layers), "lora" (shared plus a low-rank term per layer) or "separate" (one map per layer).
        lora_rank: rank of the term of "lora".
        text_width: width of the text embeddings; None builds no cross-attention.
        num_classes: number of class labels; None builds no class table.
        self_conditioning: whether `in_channels` includes a previous estimate of the clean latents (`out_channels` more of them).
        dtype: dtype of the computation; parameters are float32, norms and softmax at least float32.
        remat: what the backward pass recomputes within each S/ST pair: "none", "full" (all of it) or "dots" (all but products with weights).
    """

    latent_shape: Size3
    in_channels: int
    out_channels: int
    width: int
    depth: int
    heads: int
    patch: int = 1
    spatial_window: Size3 = (1, 16, 16)
    spacetime_window: Size3 | None = (5, 8, 8)
    adaln: Literal["shared", "lora", "separate"] = "lora"
    lora_rank: int = 2
    text_width: int | None = None
    num_classes: int | None = None
    mlp_ratio: int = 4
    qk_norm: bool = True
    self_conditioning: bool = True
    dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    remat: Literal["none", "full", "dots"] = "none"

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_windows()
        self._check_choices()

    def _check_sizes(self) -> None:
        for name in (
            "in_channels",
            "out_channels",
            "width",
            "depth",
            "heads",
            "patch",
            "lora_rank",
            "mlp_ratio",
            "text_width",
            "num_classes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"transformer.{name} must be at least 1, got {value}")
        if len(self.latent_shape) != 3 or min(self.latent_shape) < 1:
            raise ConfigError(
                f"transformer.latent_shape must be three positive sizes (frames, height, width), got {self.latent_shape}"
            )
        if any(side % self.patch for side in self.latent_shape[1:]):
            raise ConfigError(
                f"transformer.patch {self.patch} must divide the height and width of latent_shape {self.latent_shape}"
            )
        if self.width % self.heads:
            raise ConfigError(f"transformer.heads {self.heads} must divide width {self.width}")
        needed = self.out_channels * (2 if self.self_conditioning else 1)
        if self.in_channels < needed:
            raise ConfigError(
                f"transformer.in_channels must be at least {needed} for out_channels {self.out_channels} with self_conditioning "
                f"{self.self_conditioning}, got {self.in_channels}"
            )

    def _check_windows(self) -> None:
        for name in ("spatial_window", "spacetime_window"):
            window = getattr(self, name)
            if window is not None and (len(window) != 3 or min(window) < 1):
                raise ConfigError(
                    f"transformer.{name} must be three positive sizes (frames, height, width) in tokens, got {window}"
                )
        if self.spatial_window[0] != 1:
            raise ConfigError(f"transformer.spatial_window must span one frame, got {self.spatial_window}")
        if self.spacetime_window is not None and self.depth % 2:
            raise ConfigError(
                f"transformer.depth must be even (layers alternate spatial and spatiotemporal), got {self.depth}"
            )

    def _check_choices(self) -> None:
        choices = {
            "adaln": ("shared", "lora", "separate"),
            "dtype": ("bfloat16", "float32", "float64"),
            "remat": ("none", "full", "dots"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"transformer.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    @property
    def wide_dtype(self) -> Literal["float32", "float64"]:
        """Of the conditioning, which is small and holds timesteps up to 1000, too fine for bfloat16."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def grid(self) -> Size3:
        """Tokens per row along frames, height and width."""
        frames, height, width = self.latent_shape
        return frames, height // self.patch, width // self.patch
