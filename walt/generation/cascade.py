"""Cascade: a base model, and super-resolution models that make its videos larger one after the other (W.A.L.T, section 5).

Stages meet in pixels: each encodes the video it is given with its own autoencoder, as in training, so stages need not share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from walt.generation.pipeline import GenerationError, Pipeline, load

SEED_STRIDE = 0x9E3779B9
"""Between the seeds of stages, whose noises would otherwise be the same numbers on different grids."""


class Cascade:
    """Pipelines that follow one another; `generate` takes what `Pipeline.generate` takes.

    Attributes:
      stages: the base first.
    """

    def __init__(self, stages: Sequence[Pipeline]):
        """Raises `GenerationError` unless each stage makes what the next one takes."""
        self.stages = tuple(stages)
        for number, (before, after) in enumerate(zip(self.stages, self.stages[1:]), 1):
            if after.low_size is None:
                raise GenerationError(f"stage {number} of the cascade is no super-resolution model")
            if before.video_size != after.low_size:
                raise GenerationError(
                    f"stage {number} of the cascade makes {after.low_size} larger, but the one before it makes {before.video_size}"
                )

    @classmethod
    def load(cls, paths: Sequence[epath.PathLike]) -> Cascade:
        """The cascade of bundles or workdirs, the base first; raises as `walt.load` does."""
        return cls([load(path) for path in paths])

    @property
    def fps(self) -> float:
        """Frames per second of the videos."""
        return self.stages[0].fps

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Videos of prompts. Sizes are those of the last stage; every stage takes the prompt, the seed and all other options."""
        size: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width}
        self.stages[-1].check_size(**size)  # before the stages below it have worked in vain
        video = None
        for number, stage in enumerate(self.stages):
            wanted = size if stage is self.stages[-1] else {}
            own_seed = (seed + number * SEED_STRIDE) % 2**32 if number else seed
            video = stage.generate(prompt, low_resolution=video, seed=own_seed, **wanted, **options)
        assert video is not None
        return video
