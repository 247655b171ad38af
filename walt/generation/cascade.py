"""Cascade: a base model, and super-resolution models that make its videos larger one after the other (W.A.L.T, section 5).

Stages meet in pixels: each encodes the video it is given with its own autoencoder, as in training, so stages need not share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8

from walt.generation.pipeline import Pipeline, load
from walt.generation.request import GenerationError
from walt.parallel.config import MeshConfig

SEED_STRIDE = 0x9E3779B9
"""Between the seeds of stages, whose noises would otherwise be the same numbers on different grids."""


class Cascade:
    """Pipelines that follow one another.

    Attributes:
      stages: the base first.
    """

    def __init__(self, stages: Sequence[Pipeline], names: Sequence[str] = ()):
        """`names` are for messages. Raises `GenerationError` unless each stage makes what the next one takes."""
        self.stages = tuple(stages)
        if not stages:
            raise GenerationError("a cascade needs at least one model")
        names = names or [f"model {number} of the cascade" for number in range(len(stages))]
        for before, after, name, next_name in zip(self.stages, self.stages[1:], names, names[1:]):
            if after.low_size is None:
                found = (
                    f"generates {after.video_size} from nothing" if after.video_size else "holds an autoencoder alone"
                )
                raise GenerationError(
                    f"{next_name} {found}: what follows in a cascade is a super-resolution model, such as t2v/super_atari trains"
                )
            if before.video_size != after.low_size:
                made = before.video_size or "no videos at all"
                raise GenerationError(f"{next_name} makes {after.low_size} larger, but {name} before it makes {made}")

    @classmethod
    def load(cls, paths: Sequence[epath.PathLike], mesh: Mesh | MeshConfig | None = None) -> Cascade:
        """The cascade of bundles or workdirs, the base first; raises as `walt.load` does."""
        return cls([load(path, mesh=mesh) for path in paths], [str(path) for path in paths])

    @property
    def checksums(self) -> tuple[str, ...]:
        """Those of the stages, see `Pipeline.checksum`."""
        return tuple(stage.checksum for stage in self.stages)

    @property
    def fps(self) -> float:
        """Frames per second of the videos."""
        return self.stages[0].fps

    def generate(
        self,
        prompt: str | Sequence[str] | None,
        *,
        low_resolution: UInt8[np.ndarray, "*n t i j 3"] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        seed: int = 0,
        row: int = 0,
        negative_prompt: str | None = None,
        batch_size: int = 16,
        **options: Any,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Videos of prompts, see `Pipeline.generate`.

        Sizes are those of the last stage; `low_resolution` and all other options (steps, guidance, solver) those of the first, and the
        stages behind it take the steps and the guidance of their bundles.
        """
        size: dict[str, Any] = {"num_frames": num_frames, "height": height, "width": width}
        self.stages[-1].check_size(**size)  # before the stages below it have worked in vain
        video = low_resolution
        for number, stage in enumerate(self.stages):
            wanted = size if stage is self.stages[-1] else {}
            own_seed = (seed + number * SEED_STRIDE) % 2**32 if number else seed
            chosen = {} if number else options
            video = stage.generate(
                prompt,
                low_resolution=video,
                seed=own_seed,
                row=row,
                negative_prompt=negative_prompt,
                batch_size=batch_size,
                **wanted,
                **chosen,
            )
        assert video is not None
        return video
