"""What a video's file says of how it was made, and making it again.

A `Record` is a request with nothing left open: with the model that it names it determines the video. It travels as JSON in the comment of the file
(see `walt.data.media.read_note`), where anybody may have written anything: it is read with suspicion, and what a model cannot
do is refused by the checks of every other request.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import UInt8

import walt
from walt.config import nearest
from walt.data import media
from walt.generation.cascade import Cascade
from walt.generation.catalogue import TASKS, Task
from walt.generation.inputs import Inputs
from walt.generation.request import GenerationError, check_negative, check_prompts
from walt.generation.shots import Shot, Storyboard, parse_storyboard
from walt.generation.storyboards import frames_of
from walt.untrusted import field, parse_json, typed

FORMAT = 1
MAX_CHARACTERS = 2**20
MAX_PROMPTS = 2**14
MAX_FRAMES, MAX_SIDE = 2**16, 2**13
"""Of a record that is read; a model may well be asked for more."""
SETTINGS = ("num_frames", "height", "width", "fps", "steps", "guidance", "solver", "seed", "row")


class RecordError(ValueError):
    """A file that does not say how it was made; the message names it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """How videos are made.

    Attributes:
      task: which one of `walt.generation.catalogue`.
      models: checksums of the stages of a cascade, the base first.
      prompts: what the model reads; none of a task that can do without.
      given: what people wrote, before a rewriter.
      rewriter: which one, and empty for none.
      negative_prompt: empty for none.
      num_frames, height, width: in pixels.
      fps: frames per second of the file.
      steps, guidance, solver: of the base.
      seed, row: what the first video is drawn from.
      options: what else the task was told, by name.
      inputs: SHA-256 of the pixels that the task was given, by name, and of one of several pictures by its frame too, as `keyframes.16`.
      shots: of a storyboard, without the pictures that some begin with.
      conditioning: how known parts were kept: `trained`, `replacement`, or empty where nothing is known.
      walt: version that made it.
    """

    task: str
    models: tuple[str, ...]
    prompts: tuple[str, ...]
    given: tuple[str, ...]
    rewriter: str
    negative_prompt: str
    num_frames: int
    height: int
    width: int
    fps: float
    steps: int
    guidance: float
    solver: str
    seed: int
    row: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shots: tuple[Shot, ...] = ()
    conditioning: str = ""
    walt: str = walt.__version__

    def of_row(self, number: int) -> Record:
        """That of one video of several."""
        return dataclasses.replace(
            self, prompts=(self.prompts[number],), given=(self.given[number],), row=self.row + number
        )

    def rows(self) -> list[Record]:
        """Those of its videos one by one."""
        return [self.of_row(number) for number in range(len(self.prompts))] if self.task == "generate" else [self]

    def held(self) -> Inputs:
        """What it holds of what its task is given: a storyboard, without pictures."""
        return {name: Storyboard(self.shots) for name in TASKS["storyboard"].inputs} if self.shots else {}

    def sized(self, videos: UInt8[np.ndarray, "n t h w 3"]) -> Record:
        """It with the size of what was made, which not every task is told."""
        frames, height, width = videos.shape[1:4]
        return dataclasses.replace(self, num_frames=frames, height=height, width=width)

    def settings(self) -> dict[str, Any]:
        """What `resolve` takes beside prompts."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in SETTINGS}
        return chosen | {"negative_prompt": self.negative_prompt or None}

    def check_models(self, path: str | os.PathLike, model: Cascade) -> None:
        """Raises `RecordError` unless the cascade is that by which the file at `path` was made."""
        if self.models == model.checksums:
            return
        if len(self.models) != len(model.checksums):
            raise RecordError(
                f"{path} was made by {len(self.models)} model{'s' * (len(self.models) != 1)}, and {len(model.checksums)} are given: "
                "name the same --checkpoint and --cascade, or add --other_model to take its settings alone"
            )
        number = next(n for n, (a, b) in enumerate(zip(self.models, model.checksums)) if a != b)
        flag = "--cascade" if number else "--checkpoint"
        raise RecordError(
            f"{path} was made by another model (checksum {self.models[number][:12]}) than this one ({model.checksums[number][:12]}): name it "
            f"with {flag}, or add --other_model to take its settings alone"
        )

    def others(self, path: str | os.PathLike, inputs: Inputs) -> list[str]:
        """A line on each of the inputs that is another than those by which the file at `path` was made."""
        now, lines = checksums_of(inputs), []
        for name in sorted(now.keys() | self.inputs.keys()):
            if name not in now:
                lines.append(f"{path} was made with {name}, which is not given")
            elif name not in self.inputs:
                lines.append(f"{path} was made without {name}, which is given")
            elif now[name] != self.inputs[name]:
                lines.append(f"{name} is another than the one that {path} was made with")
        if _shots(inputs) != self.shots:
            lines.append(f"the storyboard has other shots than the one that {path} was made with")
        return lines

    def to_json(self) -> str:
        """ASCII text, the same for equal records."""
        values = dataclasses.asdict(self) | {"shots": [shot.told() for shot in self.shots]}
        if not self.shots:  # which older versions know nothing of
            del values["shots"]
        return json.dumps({"format": FORMAT, **values}, allow_nan=False)


def resolve(
    model: Cascade,
    prompts: Sequence[str],
    *,
    task: str = "generate",
    options: Mapping[str, Any] = MappingProxyType({}),
    inputs: Inputs = MappingProxyType({}),
    given: Sequence[str] | None = None,
    rewriter: str = "",
    negative_prompt: str | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: str | None = None,
    seed: int = 0,
    row: int = 0,
) -> Record:
    """The record of a request, None being what the model does unless told otherwise. A storyboard brings its own prompts.

    Raises:
      GenerationError: there is no such task, it takes other inputs or options, or the model does not make that size.
    """
    base, *others = model.stages
    takes = _check_task(task, options, inputs)
    if others and task != "generate":
        raise GenerationError(f"{task} is a task of one model, and this is a cascade of {len(model.stages)}")
    shots = _shots(inputs)
    if takes.words == "shots":
        if prompts:
            raise GenerationError(f"{task} takes no prompt: each of its shots has one")
        prompts, given, num_frames = [shot.prompt for shot in shots], None, frames_of(base, shots)
    elif num_frames is None and takes.seconds is not None:
        num_frames = max(1, round(takes.seconds * model.fps))
    size = model.stages[-1].check_size(num_frames, height, width)
    prompts = check_prompts(prompts) if prompts or "prompt" not in takes.optional else ()
    if len(prompts) > 1 and takes.words == "prompt" and task != "generate":
        raise GenerationError(f"{task} takes one prompt, got {len(prompts)}")
    return Record(
        task=task,
        models=model.checksums,
        prompts=tuple(prompts),
        given=tuple(prompts if given is None else given),
        rewriter=rewriter,
        negative_prompt="" if negative_prompt is None else check_negative(negative_prompt),
        num_frames=size.frames,
        height=size.height,
        width=size.width,
        fps=model.fps * takes.speed(options) if fps is None else fps,
        steps=base.sampler.steps if steps is None else steps,
        guidance=base.sampler.guidance if guidance is None else guidance,
        solver=base.sampler.solver if solver is None else solver,
        seed=seed,
        row=row,
        options=dict(options),
        inputs=checksums_of(inputs),
        shots=shots,
        # What has several prompts goes on from what it has made.
        conditioning=base.conditioning if inputs or takes.words != "prompt" else "",
    )


def _check_task(task: str, options: Mapping[str, Any], inputs: Inputs) -> Task:
    if task not in TASKS:
        raise GenerationError(f"there is no task {task!r}{nearest(task, TASKS)}")
    takes = TASKS[task]
    for name, kind in takes.inputs.items():
        if name not in inputs and name not in takes.optional:
            what = kind if kind == "pictures" else f"{'an' if kind[0] == 'i' else 'a'} {kind}"
            raise GenerationError(f"{task} needs {name}: {what}")
    for name in inputs:
        if name not in takes.inputs:
            raise GenerationError(f"{task} takes no {name}")
    for name in options:
        if name not in takes.options and not (name == "clip_fps" and takes.clip_fps):
            raise GenerationError(f"{task} has no option {name!r}{nearest(name, takes.options)}")
    return takes


def _shots(inputs: Inputs) -> tuple[Shot, ...]:
    return next((given.shots for given in inputs.values() if isinstance(given, Storyboard)), ())


def checksums_of(inputs: Inputs) -> dict[str, str]:
    """SHA-256 of all pixels that a task is given, see `Record`."""
    found = {}
    for name, given in inputs.items():
        pictures = given.pictures if isinstance(given, Storyboard) else given
        if isinstance(pictures, np.ndarray):
            found[name] = checksum_of(pictures)
        else:
            found |= {f"{name}.{number}": checksum_of(pictures[number]) for number in sorted(pictures)}
    return found


def checksum_of(pixels: np.ndarray) -> str:
    """SHA-256 of an array: of its shape and values."""
    return hashlib.sha256(
        f"{pixels.dtype} {pixels.shape} ".encode() + np.ascontiguousarray(pixels).tobytes()
    ).hexdigest()


def generate(
    model: Cascade, record: Record, inputs: Inputs = MappingProxyType({}), batch_size: int = 16
) -> UInt8[np.ndarray, "n t h w 3"]:
    """The videos of a record; `inputs` are those that it was made with, but for a storyboard without pictures, which it holds.

    Raises:
      RecordError: the inputs are others than those of the record.
      GenerationError: the model cannot make them.
    """
    if record.task != "generate":
        made = perform(model, record, inputs)
        return (made if isinstance(made, np.ndarray) else np.stack(list(made)))[None]
    settings = _settings(record, inputs)
    numbers = range(record.row, record.row + len(record.prompts))
    return model.generate(list(record.prompts), numbers=numbers, batch_size=batch_size, **settings)


def perform(
    model: Cascade, record: Record, inputs: Inputs = MappingProxyType({})
) -> UInt8[np.ndarray, "t h w 3"] | Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The video of a record of any other task than `generate`, or, of a stream, its pictures as they are made. Raises as `generate` does."""
    settings = _settings(record, inputs)
    match TASKS[record.task].words:
        case "prompt":
            (settings["prompt"],) = record.prompts or (None,)
        case "prompts":
            settings["prompts"] = record.prompts
    return getattr(model.stages[0], record.task)(**settings)


def _settings(record: Record, inputs: Inputs) -> dict[str, Any]:
    """What the method of a task is told beside prompts."""
    inputs = {**record.held(), **inputs}
    takes, given = _check_task(record.task, record.options, inputs), checksums_of(inputs)
    for name, checksum in given.items():
        if record.inputs.get(name) != checksum:
            raise RecordError(f"{name} is another than the one that the record was made with")
    if missing := record.inputs.keys() - given.keys():
        raise RecordError(f"the record was made with {min(missing)}, which is not given")
    if _shots(inputs) != record.shots:
        raise RecordError("the storyboard has other shots than the one that the record was made with")
    chosen = {name: getattr(record, name) for name in ("steps", "guidance", "solver", "seed", *takes.sizes)}
    return {**inputs, **record.options, **chosen, "negative_prompt": record.negative_prompt or None}


def read_record(path: str | os.PathLike, limits: media.Limits = media.LIMITS) -> Record:
    """What a video or picture says of how it was made.

    Raises:
      RecordError: it says nothing, or nothing that can be understood.
      MediaError: it is no file that can be read.
    """
    note = media.read_note(path, limits)
    if note is None:
        raise RecordError(
            f"{path} does not say how it was made: walt did not write it, or another program has dropped its comment"
        )
    try:
        return parse_record(note)
    except ValueError as error:
        raise RecordError(f"what {path} says of how it was made cannot be used: {error}") from error


def parse_record(note: str) -> Record:
    """The record that `to_json` has written; `ValueError` for any other text."""
    if len(note) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(note):,} characters, more than {MAX_CHARACTERS:,}")
    values = {"shots": [], **typed(parse_json(note), dict, "it")}
    if field(values, "format", int) != FORMAT:
        raise ValueError(f"its format is {values['format']}, and this version reads format {FORMAT}")
    fields = {each.name: each.type for each in dataclasses.fields(Record)}
    if unknown := values.keys() - fields.keys() - {"format"}:
        raise ValueError(f"{ascii(min(unknown))[:60]} is no field of a record")
    record = Record(**{name: _read(values, name, str(kind)) for name, kind in fields.items()})
    for name, most in (("num_frames", MAX_FRAMES), ("height", MAX_SIDE), ("width", MAX_SIDE)):
        if not 1 <= (size := getattr(record, name)) <= most:
            raise ValueError(f"{name} is {str(size)[:20]}, which is not within 1 to {most}")
    wordless = record.task in TASKS and "prompt" in TASKS[record.task].optional
    if not (record.prompts or wordless) or len(record.prompts) != len(record.given):
        raise ValueError("it has no prompts, or not as many as were given")
    return record


def _read(values: Mapping[str, Any], name: str, kind: str) -> Any:
    match kind:
        case "str":
            return _line(field(values, name, str), name)
        case "int":
            return field(values, name, int)
        case "float":
            return field(values, name, float)
        case "tuple[str, ...]":
            texts = field(values, name, list)
            if len(texts) > MAX_PROMPTS:
                raise ValueError(f"{name} holds more than {MAX_PROMPTS:,} texts")
            return tuple(_line(typed(text, str, name), name) for text in texts)
        case "tuple[Shot, ...]":
            return _read_shots(field(values, name, list))
        case _:  # a mapping of plain values
            found = field(values, name, dict)
            for key, value in found.items():
                if type(value) not in (str, int, float, bool):
                    raise ValueError(f"{name} holds something that is neither text nor number")
                _line(str(value), f"{name}.{_line(key, name)}")
            return found


def _read_shots(values: list[Any]) -> tuple[Shot, ...]:
    if not values:
        return ()
    if len(values) > MAX_PROMPTS:
        raise ValueError(f"shots holds more than {MAX_PROMPTS:,}")
    shots, images = parse_storyboard({"shots": values}, "it")
    if images:
        raise ValueError("a shot names the file of an image, and records hold none")
    for shot in shots:
        _line(shot.prompt, "shots")
    return shots


def _line(text: str, what: str) -> str:
    """Text that can be printed: other control characters than these two could speak to a terminal."""
    if any(unicodedata.category(character) == "Cc" and character not in "\n\t" for character in text):
        raise ValueError(f"{what} holds control characters")
    return text
