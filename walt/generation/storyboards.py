"""Storyboards: shots one after the other, to one video; see `walt.generation.shots` for how they are written.

`cut` starts anew; `continue` goes on from the pictures before with another prompt; `morph` makes both shots and a transition that knows both ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from walt.generation.canvas import blank, held, joined
from walt.generation.clips import Clip, as_picture
from walt.generation.long_tasks import MORPH_ROW, check_seconds, forward, transition, transition_length
from walt.generation.rolling import paint_whole
from walt.generation.sampling import Sampling
from walt.generation.shots import Shot, Storyboard, read_storyboard

if TYPE_CHECKING:
    from walt.generation.pipeline import Pipeline


class Length(NamedTuple):
    """Of a shot: its own frames, and the latent frames of the transition before it."""

    frames: int
    bridge: int


def storyboard(pipeline: Pipeline, storyboard: Storyboard | str | Path, **sampling: Any) -> Clip:
    """One video of a storyboard, or of the file of one: its shots one after the other, each with its prompt, length and transition."""
    board = storyboard if isinstance(storyboard, Storyboard) else read_storyboard(storyboard)
    options, size = Sampling(**sampling), pipeline.check_size()
    pictures = {
        number: as_picture(picture, size, f"the image of shot {number}") for number, picture in board.pictures.items()
    }  # all of them before anything is made
    video = np.zeros((0, size.height, size.width, 3), np.uint8)
    for number, (shot, (count, bridge)) in enumerate(zip(board.shots, lengths_of(pipeline, board.shots), strict=True)):
        own = dataclasses.replace(options, seed=(options.seed + number) % 2**32 if shot.seed is None else shot.seed)
        if shot.transition == "continue":
            video = np.concatenate([video, *forward(pipeline, video, shot.prompt, count, own)])
            continue
        made = _from_a_cut(pipeline, shot.prompt, count, pictures.get(number), own)
        if bridge:
            # The shot that it leads to is drawn from the first rows of the same seed.
            morph = transition(pipeline, video, made, shot.prompt, bridge, own, row=MORPH_ROW)
            video = np.concatenate([video, morph])
        video = np.concatenate([video, made])
    return video


def lengths_of(pipeline: Pipeline, shots: Sequence[Shot]) -> list[Length]:
    """Of every shot."""
    return [Length(_frames(pipeline, shot), _bridge(pipeline, shot)) for shot in shots]


def frames_of(pipeline: Pipeline, shots: Sequence[Shot]) -> int:
    """Frames of the whole video."""
    return sum(length.frames + length.bridge * pipeline.time_factor for length in lengths_of(pipeline, shots))


def _frames(pipeline: Pipeline, shot: Shot) -> int:
    if shot.seconds is not None:
        return check_seconds(pipeline, shot.seconds)
    return pipeline.check_size(shot.num_frames).frames


def _bridge(pipeline: Pipeline, shot: Shot) -> int:
    return transition_length(pipeline, shot.transition_seconds, None) if shot.transition == "morph" else 0


def _from_a_cut(pipeline: Pipeline, prompt: str, count: int, picture: Clip | None, sampling: Sampling) -> Clip:
    frames, *rest = pipeline.latent_shape
    canvas = blank((max(frames, pipeline.latent_frames(count)), *rest))
    if picture is not None:
        canvas = joined(held(pipeline.encode(picture)), canvas.part(1, canvas.frames))
    return paint_whole(pipeline, canvas, prompt, sampling)[:count]
