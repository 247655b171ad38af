"""What a page lets a browser ask for."""

from __future__ import annotations

import dataclasses

from walt.data import media
from walt.generation.record import Record
from walt.generation.request import GenerationError


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may be at most.

    Attributes:
      max_frames: of a video, that is made or given.
      max_side: of a video that is made, in pixels; of one that is given, UPLOADED times that.
      max_steps: of sampling.
      max_megabytes: of a file that is given.
      max_pictures: of those that a video passes through.
      max_characters: of a prompt.
      max_storyboard: characters of a storyboard.
      max_queue: requests that wait.
    """

    max_frames: int = 257
    max_side: int = 1024
    max_steps: int = 250
    max_megabytes: int = 64
    max_pictures: int = 16
    max_characters: int = 2000
    max_storyboard: int = 20_000
    max_queue: int = 16

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise GenerationError(f"{name} must be at least 1, got {value}")

    @property
    def files(self) -> media.Limits:
        """Of files that are read."""
        side = self.max_side * UPLOADED
        return media.Limits(
            pixels=side * side,
            frames=self.max_frames,
            seconds=3600.0,
            megabytes=self.max_megabytes,
            decoded_megabytes=max(1, side * side * 3 // 2**20) + 1024,
        )

    def check(self, record: Record, frames: int) -> None:
        """Raises `GenerationError` naming the first thing that is too large; `frames` are those that will be made."""
        found = {
            "frames": (frames, self.max_frames),
            "pixels of height": (record.height, self.max_side),
            "pixels of width": (record.width, self.max_side),
            "steps": (record.steps * record.options.get("visits", 1), self.max_steps),
            "characters of prompt": (max(map(len, record.prompts)), self.max_characters),
            "characters of negative prompt": (len(record.negative_prompt), self.max_characters),
        }
        for what, (value, most) in found.items():
            if value > most:
                raise GenerationError(f"this page makes at most {most} {what}, got a request for {value}")


UPLOADED = 4
"""Sides of a file that is given, in those of a video that may be made: it is scaled down."""
