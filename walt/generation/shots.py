"""Storyboards as they are written: shots with prompts, lengths and transitions, in JSON or YAML.

    shots:
      - prompt: a game of Freeway
        seconds: 2               # or num_frames
      - prompt: a game of Enduro
        num_frames: 24
        transition: morph        # how it follows the shot before: cut (the default), continue, or morph
        transition_seconds: 0.8  # of a morph
        image: first.png         # optional picture, that a shot after a cut begins with, beside the file
        seed: 3                  # optional; by default that of the call, plus the shot's number

A storyboard may come from anybody: what is in it is checked, and who reads its text alone learns which pictures it names but opens none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import yaml
from jaxtyping import UInt8

from walt.config import nearest
from walt.data import media
from walt.generation.request import GenerationError
from walt.untrusted import parse_json, typed

Transition = Literal["cut", "continue", "morph"]
LARGEST_FILE = 2**20
LARGEST_NUMBER = 2**53


@dataclasses.dataclass(frozen=True)
class Shot:
    """One shot; see the module."""

    prompt: str
    seconds: float | None = None
    num_frames: int | None = None
    transition: Transition = "cut"
    transition_seconds: float | None = None
    seed: int | None = None

    def told(self) -> dict[str, Any]:
        """What it says beyond what a shot is by itself."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, "cut")}


@dataclasses.dataclass(frozen=True)
class Storyboard:
    """All shots, and the pictures that some begin with, by the number of the shot."""

    shots: tuple[Shot, ...]
    pictures: Mapping[int, UInt8[np.ndarray, "h w 3"]] = dataclasses.field(default_factory=dict)


class Script(NamedTuple):
    """All shots, and the files of the pictures that some begin with, by the number of the shot."""

    shots: tuple[Shot, ...]
    images: dict[int, str]


def read_storyboard(path: str | Path) -> Storyboard:
    """A storyboard's file, .json, .yaml or .yml, and the pictures that it names.

    Raises:
      GenerationError: it cannot be read, or a shot or key in it is not what it should be; the message names it.
      MediaError: a picture cannot be read.
    """
    file = Path(path)
    if file.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise GenerationError(f"a storyboard is a .json, .yaml or .yml file, got {file.name}")
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise GenerationError(f"{file} is larger than a storyboard may be, 1 MB")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise GenerationError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GenerationError(f"{file} is no {file.suffix[1:].upper()}: it is not UTF-8") from error
    script = parse_script(text, "JSON" if file.suffix.lower() == ".json" else "YAML", str(file))
    return Storyboard(
        script.shots, {number: media.read_image(file.parent / image) for number, image in script.images.items()}
    )


def parse_script(text: str, language: Literal["JSON", "YAML"], name: str = "storyboard") -> Script:
    """What a storyboard's text says; raises `GenerationError` as `read_storyboard` does."""
    try:
        values = parse_json(text) if language == "JSON" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise GenerationError(f"{name} is no {language}: {str(error).splitlines()[0]}") from error
    return parse_storyboard(values, name)


def parse_storyboard(values: Any, name: str = "storyboard") -> Script:
    """A storyboard of plain values; raises `GenerationError` as `read_storyboard` does."""
    values = _checked(values, {"shots": list}, name)
    if not values.get("shots"):
        raise GenerationError(f"{name}: shots is missing or empty; list at least one shot with a prompt")
    images: dict[int, str] = {}
    shots = tuple(_shot(shot, number, name, images) for number, shot in enumerate(values["shots"]))
    return Script(shots, images)


def _shot(values: Any, number: int, name: str, images: dict[int, str]) -> Shot:
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
    told = {"prompt": "", **_checked(values, kinds, what)}
    image = told.pop("image", None)
    shot = Shot(**told)
    if not shot.prompt.strip():
        raise GenerationError(f"{what} has no prompt; say what it should show")
    if shot.transition not in get_args(Transition):
        raise GenerationError(
            f"{what}: transition must be {', '.join(get_args(Transition))}, got {_shown(shot.transition)}{nearest(shot.transition[:60], get_args(Transition))}"
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
    if shot.seed is not None and not 0 <= shot.seed < 2**32:
        raise GenerationError(f"{what}: seed must be an integer from 0 to 2**32 - 1, got {shot.seed}")
    if image is not None:
        if shot.transition == "continue":
            raise GenerationError(f"{what}: a shot that continues the one before cannot begin with an image")
        images[number] = image
    return shot


def _checked(values: Any, kinds: dict[str, type], what: str) -> dict[str, Any]:
    """The values of a mapping with these keys and kinds."""
    if not isinstance(values, dict):
        raise GenerationError(f"{what} must be a mapping with {', '.join(kinds)}, got {type(values).__name__}")
    found = {}
    for key, value in values.items():
        if key not in kinds:
            hint = nearest(str(key)[:60], kinds) if isinstance(key, str) else ""
            raise GenerationError(f"{what}: unknown key {_shown(key)}, expected {', '.join(kinds)}{hint}")
        kind = kinds[key]
        fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not fits or (kind is not str and isinstance(value, int) and abs(value) > LARGEST_NUMBER):
            raise GenerationError(f"{what}: {key} must be {_SAID[kind]}, got {_shown(value)}")
        try:
            found[key] = typed(value, str, f"{what}: {key}") if kind is str else kind(value)
        except ValueError as error:
            raise GenerationError(str(error)) from error
    return found


_SAID: dict[type, str] = {str: "text", int: "a whole number", float: "a number", list: "a list"}


def _shown(value: Any) -> str:
    """What someone has written, in few letters: aliases of YAML can make a value whose full text has no end."""
    short = isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) <= LARGEST_NUMBER)
    return repr(value)[:60] if short else type(value).__name__
