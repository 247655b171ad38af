"""Storyboards: shots with prompts, lengths and transitions, from a JSON or YAML file to one video.

    shots:
      - prompt: a game of Freeway
        seconds: 2               # or num_frames
      - prompt: a game of Enduro
        num_frames: 24
        transition: morph        # how it follows the shot before: cut (the default), continue, or morph
        transition_seconds: 0.8  # of a morph
        image: first.png         # optional picture, that a shot after a cut begins with, beside the file
        seed: 3                  # optional; by default that of the call, plus the shot's number

`cut` starts anew; `continue` goes on from the pictures before with another prompt; `morph` makes both shots and a transition that knows both ends.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import yaml

from walt.config import nearest
from walt.data import media
from walt.generation.canvas import blank, held, joined
from walt.generation.clips import Clip, as_picture
from walt.generation.long_tasks import check_seconds, forward, transition, transition_length
from walt.generation.request import GenerationError
from walt.generation.rolling import paint_whole
from walt.generation.sampling import Sampling

if TYPE_CHECKING:
    from walt.generation.pipeline import Pipeline

Transition = Literal["cut", "continue", "morph"]
LARGEST_FILE = 2**20


@dataclasses.dataclass(frozen=True)
class Shot:
    """One shot; see the module."""

    prompt: str
    seconds: float | None = None
    num_frames: int | None = None
    transition: Transition = "cut"
    transition_seconds: float | None = None
    image: str | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Storyboard:
    """All shots, and the folder in which their pictures lie."""

    shots: tuple[Shot, ...]
    folder: Path = Path(".")


def read_storyboard(path: str | Path) -> Storyboard:
    """A storyboard's file, .json, .yaml or .yml.

    Raises:
      GenerationError: it cannot be read, or a shot or key in it is not what it should be; the message names it.
    """
    file = Path(path)
    if file.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise GenerationError(f"a storyboard is a .json, .yaml or .yml file, got {file.name}")
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise GenerationError(f"{file} is larger than a storyboard may be, 1 MB")
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix.lower() == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise GenerationError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise GenerationError(f"{file} is no {file.suffix[1:].upper()}: {str(error).splitlines()[0]}") from error
    return parse_storyboard(values, file.parent, str(file))


def parse_storyboard(values: Any, folder: Path = Path("."), name: str = "storyboard") -> Storyboard:
    """A storyboard of plain values; raises `GenerationError` as `read_storyboard` does."""
    values = _checked(values, {"shots": list}, name)
    if not values.get("shots"):
        raise GenerationError(f"{name}: shots is missing or empty; list at least one shot with a prompt")
    return Storyboard(tuple(_shot(shot, number, name) for number, shot in enumerate(values["shots"])), folder)


def _shot(values: Any, number: int, name: str) -> Shot:
    what = f"{name}: shot {number}"
    kinds = {
        "prompt": str,
        "seconds": float,
        "num_frames": int,
        "transition": str,
        "transition_seconds": float,
        "image": str,
        "seed": int,
    }
    shot = Shot(**{"prompt": "", **_checked(values, kinds, what)})
    if not shot.prompt.strip():
        raise GenerationError(f"{what} has no prompt; say what it should show")
    if shot.transition not in get_args(Transition):
        raise GenerationError(
            f"{what}: transition must be {', '.join(get_args(Transition))}, got {shot.transition!r}{nearest(shot.transition, get_args(Transition))}"
        )
    if shot.seconds is not None and shot.num_frames is not None:
        raise GenerationError(f"{what}: give seconds or num_frames, not both")
    for key in ("seconds", "num_frames", "transition_seconds"):
        value = getattr(shot, key)
        if value is not None and not 0 < value < 1e6:
            raise GenerationError(f"{what}: {key} must be positive, got {value}")
    if number == 0 and shot.transition != "cut":
        raise GenerationError(f"{what}: the first shot follows none, so it has no transition {shot.transition!r}")
    if shot.transition_seconds is not None and shot.transition != "morph":
        raise GenerationError(f"{what}: transition_seconds is of a morph, and the transition is {shot.transition!r}")
    if shot.image is not None and shot.transition == "continue":
        raise GenerationError(f"{what}: a shot that continues the one before cannot begin with an image")
    return shot


def _checked(values: Any, kinds: dict[str, type], what: str) -> dict[str, Any]:
    """The values of a mapping with these keys and kinds."""
    if not isinstance(values, dict):
        raise GenerationError(f"{what} must be a mapping with {', '.join(kinds)}, got {type(values).__name__}")
    found = {}
    for key, value in values.items():
        if key not in kinds:
            raise GenerationError(f"{what}: unknown key {key!r}, expected {', '.join(kinds)}{nearest(str(key), kinds)}")
        kind = kinds[key]
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits:
            raise GenerationError(f"{what}: {key} must be {_SAID[kind]}, got {value!r}")
        found[key] = kind(value)
    return found


_SAID: dict[type, str] = {str: "text", int: "a whole number", float: "a number", list: "a list"}


def storyboard(pipeline: Pipeline, board: Storyboard | str | Path, **sampling: Any) -> Clip:
    """One video of a storyboard, or of the file of one: its shots one after the other, each with its prompt, length and transition."""
    board = board if isinstance(board, Storyboard) else read_storyboard(board)
    options, size = Sampling(**sampling), pipeline.check_size()
    pictures = [
        None
        if shot.image is None
        else as_picture(_read(board.folder / shot.image), size, f"the image of shot {number}")
        for number, shot in enumerate(board.shots)
    ]  # all of them before anything is made
    video = np.zeros((0, size.height, size.width, 3), np.uint8)
    for number, (shot, picture) in enumerate(zip(board.shots, pictures, strict=True)):
        own = dataclasses.replace(options, seed=(options.seed + number) % 2**32 if shot.seed is None else shot.seed)
        count = size.frames if shot.num_frames is None else shot.num_frames
        if shot.seconds is not None:
            count = check_seconds(pipeline, shot.seconds)
        if shot.transition == "continue":
            video = np.concatenate([video, *forward(pipeline, video, shot.prompt, count, own)])
            continue
        made = _from_a_cut(pipeline, shot.prompt, count, picture, own)
        if shot.transition == "morph":
            length = transition_length(pipeline, shot.transition_seconds, None)
            video = np.concatenate([video, transition(pipeline, video, made, shot.prompt, length, own)])
        video = np.concatenate([video, made])
    return video


def _from_a_cut(pipeline: Pipeline, prompt: str, count: int, picture: Clip | None, sampling: Sampling) -> Clip:
    frames, *rest = pipeline.latent_shape
    canvas = blank((max(frames, pipeline.latent_frames(count)), *rest))
    if picture is not None:
        canvas = joined(held(pipeline.encode(picture)), canvas.part(1, canvas.frames))
    return paint_whole(pipeline, canvas, prompt, sampling)[:count]


def _read(path: Path) -> Clip:
    return media.read_image(path)[None]
