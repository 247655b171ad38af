"""Canvases of the tasks: clean latents in NumPy, what of them is held, and at which level each frame begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class Sheet(NamedTuple):
    """A canvas of one video, or, with a row axis in front, of several; see `walt.diffusion.canvas.Canvas`."""

    known: Float[np.ndarray, "*n f h w c"]
    mask: Float[np.ndarray, "*n f h w 1"]
    level: Float[np.ndarray, "*n f"]

    @property
    def frames(self) -> int:
        """Latent frames."""
        return self.known.shape[-4]

    def part(self, start: int, stop: int) -> Sheet:
        """Its frames from `start` to `stop`; what lies beyond the end is to be generated."""
        cut = Sheet(
            self.known[..., start:stop, :, :, :], self.mask[..., start:stop, :, :, :], self.level[..., start:stop]
        )
        missing = stop - start - cut.frames
        return cut if missing <= 0 else joined(cut, blank((missing, *self.known.shape[-3:])))


def blank(shape: tuple[int, ...]) -> Sheet:
    """Latents of `shape` ([N,] F, h, w, c), all of them to be generated."""
    return Sheet(np.zeros(shape, np.float32), np.zeros((*shape[:-1], 1), np.float32), np.ones(shape[:-3], np.float32))


def held(latents: Float[np.ndarray, "*n f h w c"], level: float = 1.0) -> Sheet:
    """Latents that come back as they are. Below 1, `level` is how noisy the network is shown them."""
    empty = blank(latents.shape)
    return Sheet(np.asarray(latents, np.float32), empty.mask + 1, empty.level * np.float32(level))


def begun(latents: Float[np.ndarray, "*n f h w c"], level: float) -> Sheet:
    """Latents that are painted over from that level on: 0 keeps them, 1 forgets them."""
    empty = blank(latents.shape)
    return Sheet(np.asarray(latents, np.float32), empty.mask, empty.level * np.float32(level))


def joined(*sheets: Sheet) -> Sheet:
    """One after the other in time."""
    return Sheet(
        *(np.concatenate(parts, axis=axis) for parts, axis in zip(zip(*sheets, strict=True), (-4, -4, -1), strict=True))
    )


def stacked(sheets: Sequence[Sheet]) -> Sheet:
    """One per row."""
    return Sheet(*(np.stack(parts) for parts in zip(*sheets, strict=True)))


def latent_mask(mask: Bool[np.ndarray, "t h w"], time_factor: int, space_factor: int) -> Float[np.ndarray, "f i j 1"]:
    """1 where all pixels of a latent position are known: of one frame for the first, of `time_factor` for the others."""
    blocks = np.concatenate([np.repeat(mask[:1], time_factor, axis=0), mask[1:]])
    frames, height, width = blocks.shape
    blocks = blocks.reshape(
        frames // time_factor, time_factor, height // space_factor, space_factor, width // space_factor, space_factor
    )
    return np.all(blocks, axis=(1, 3, 5))[..., None].astype(np.float32)
