"""The one configuration of the denoising transformer: every model of the paper, DiT, U-ViT and the mini are values of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from walt.config import ConfigError

Size3 = tuple[int, int, int]
SCALARS = {"fps": 10.0, "motion": 1000.0, "low_resolution_time": 1000.0}
"""Numbers a model can be told, and what each is multiplied by to lie between 0 and about 1000, like a timestep. `fps`: frames per second of the
pixels; `motion`: mean absolute change between latent frames; `low_resolution_time`: t of the noise on low-resolution latents."""


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
        spacetime_window: `(t, h, w)` in tokens: `(F, 1, 1)` factorises space and time (ViViT, Latte). None makes all layers alike: spatial (the
            ImageNet model), or, with a spatial_window that spans frames, those windows in every layer; of the whole grid, full attention.
        adaln: how time and class act: through adaptive layer norms, "shared" (one map for all layers), "lora" (shared plus a low-rank term
            per layer) or "separate" (one map per layer, as in DiT); or "none": layer norms with learned scale and offset, and time, class
            and text stand as tokens beside the patches of every frame, which are all in one window (U-ViT).
        lora_rank: rank of the term of "lora".
        text_width: width of the text embeddings; None builds no cross-attention.
        num_classes: number of class labels; None builds no class table.
        self_conditioning: whether `in_channels` includes a previous estimate of the clean latents (`out_channels` more of them).
        canvas: whether they include clean latents that are known, zero elsewhere, and the mask of where (`out_channels` + 1 more).
        low_resolution: factor s of a super-resolution model: they include latents of height/s x width/s, brought to full size by a convolution
            and depth-to-space (`out_channels` more); None for none.
        scalars: numbers per frame that the model can be told, each by an embedding of its own: any of SCALARS.
        position: "learned" tables, or "sincos": fixed sines and cosines, as in DiT.
        relative_bias: whether attention has Swin's relative position bias.
        long_skips: joins the output of the i-th unit (a layer, or an S/ST pair) to the input of the i-th unit from the end, as in U-ViT; the
            number of units is then odd.
        dtype: dtype of the computation; parameters are float32, norms and softmax at least float32.
        remat: what the backward pass recomputes within each S/ST pair: "none"; "full": all of it; "dots": all but products with weights;
            "attention": all but those and what attention mixes; "offload": as "dots", which wait in the memory of the host.
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
    adaln: Literal["shared", "lora", "separate", "none"] = "lora"
    lora_rank: int = 2
    text_width: int | None = None
    num_classes: int | None = None
    mlp_ratio: int = 4
    qk_norm: bool = True
    self_conditioning: bool = True
    canvas: bool = False
    low_resolution: int | None = None
    scalars: tuple[str, ...] = ()
    position: Literal["learned", "sincos"] = "learned"
    relative_bias: bool = True
    long_skips: bool = False
    dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    remat: Literal["none", "full", "dots", "attention", "offload"] = "none"

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_windows()
        self._check_choices()
        self._check_backbone()

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
            "low_resolution",
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
        parts = self.channel_parts()
        if self.in_channels != sum(parts.values()):
            listed = ", ".join(f"{count} {name}" for name, count in parts.items())
            raise ConfigError(
                f"transformer.in_channels is {self.in_channels}, expected {sum(parts.values())}: {listed}"
            )

    def _check_windows(self) -> None:
        for name in ("spatial_window", "spacetime_window"):
            window = getattr(self, name)
            if window is not None and (len(window) != 3 or min(window) < 1):
                raise ConfigError(
                    f"transformer.{name} must be three positive sizes (frames, height, width) in tokens, got {window}"
                )
        if self.spatial_window[0] != 1 and self.spacetime_window is not None:
            raise ConfigError(
                f"transformer.spatial_window must span one frame beside a spacetime_window, got {self.spatial_window}; with "
                "spacetime_window=None it may span more"
            )
        if self.spacetime_window is not None and self.depth % 2:
            raise ConfigError(
                f"transformer.depth must be even (layers alternate spatial and spatiotemporal), got {self.depth}"
            )

    def _check_choices(self) -> None:
        choices = {
            "adaln": ("shared", "lora", "separate", "none"),
            "position": ("learned", "sincos"),
            "dtype": ("bfloat16", "float32", "float64"),
            "remat": ("none", "full", "dots", "attention", "offload"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"transformer.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )

    def _check_backbone(self) -> None:
        if len(set(self.scalars)) < len(self.scalars):
            raise ConfigError(f"transformer.scalars names one twice: {self.scalars}")
        for name in self.scalars:
            if name not in SCALARS:
                raise ConfigError(f"transformer.scalars: unknown {name!r}, expected any of {', '.join(SCALARS)}")
        if (self.low_resolution is not None) != ("low_resolution_time" in self.scalars):
            raise ConfigError(
                "transformer.scalars must have 'low_resolution_time' where low_resolution is set, and only there"
            )
        if self.low_resolution is not None and any(side % self.low_resolution for side in self.latent_shape[1:]):
            raise ConfigError(
                f"transformer.low_resolution {self.low_resolution} must divide the height and width of latent_shape {self.latent_shape}"
            )
        if self.long_skips and self.units % 2 == 0:
            raise ConfigError(
                f"transformer.depth {self.depth} makes {self.units} units, but long_skips needs an odd number: one in the middle"
            )
        frames, *sides = self.spatial_window
        whole = frames == 1 and all(side >= grid for side, grid in zip(sides, self.grid[1:], strict=True))
        if self.adaln == "none" and (self.spacetime_window is not None or not whole or self.relative_bias):
            raise ConfigError(
                'transformer.adaln "none" puts tokens beside the patches of a frame, so it needs spacetime_window=None, a spatial_window of '
                f"{(1, *self.grid[1:])}, the whole of a frame, and relative_bias=False"
            )
        if self.position == "sincos" and self.width % 4:
            raise ConfigError(f'transformer.position "sincos" needs a width that is a multiple of 4, got {self.width}')

    def channel_parts(self) -> dict[str, int]:
        """What lies on the channel axis of the input, in order."""
        parts = {"noisy": self.out_channels}
        if self.self_conditioning:
            parts["of self-conditioning"] = self.out_channels
        if self.canvas:
            parts["known"] = self.out_channels
            parts["of their mask"] = 1
        if self.low_resolution is not None:
            parts["of low resolution"] = self.out_channels
        return parts

    @property
    def units(self) -> int:
        """What the stack repeats: S/ST pairs, or layers where all are spatial."""
        return self.depth if self.spacetime_window is None else self.depth // 2

    @property
    def wide_dtype(self) -> Literal["float32", "float64"]:
        """Of the conditioning, which is small and holds timesteps up to 1000, too fine for bfloat16."""
        return "float64" if self.dtype == "float64" else "float32"

    @property
    def grid(self) -> Size3:
        """Tokens per row along frames, height and width."""
        frames, height, width = self.latent_shape
        return frames, height // self.patch, width // self.patch
