"""Behind the page: from what a browser sends to a video in a folder of the server's own. Knows nothing of Gradio."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from walt.config import nearest
from walt.data import media
from walt.generation import record as records
from walt.generation.cascade import Cascade
from walt.generation.catalogue import INPUTS, OPTIONS, SIZES, TASKS
from walt.generation.inputs import Input, Inputs, as_option, expected_frames, read_input
from walt.generation.record import Record
from walt.generation.request import GenerationError
from walt.generation.shots import Storyboard, parse_script
from walt.serving.jobs import Done, Jobs, Progress, Waiting
from walt.serving.limits import Limits

KEPT = 200
"""Videos whose files are kept, of all who use the page."""
PREVIEWS = 8
"""Times that a preview is shown while the sampler runs once."""
SMALLEST = 256
"""Pixels of the shorter side of a file; smaller videos show every pixel several times."""


FRAMES = "frames"
"""Under which name a browser sends the frames that pictures belong to."""
NEEDED = {"pictures": "pictures", "storyboard": "its shots, as JSON or YAML"}


class Asked(NamedTuple):
    """What a browser asks for, as far as it can be known before its files are read.

    Attributes:
      task: its name.
      files: by input, that of an image, mask or video, or of each picture by its frame.
      held: inputs that are no files: storyboards.
      prompts: what the model reads.
      options, settings: what `walt.generation.record.resolve` takes.
    """

    task: str
    files: Mapping[str, str | Mapping[int, str]]
    held: Inputs
    prompts: list[str]
    options: Mapping[str, Any]
    settings: Mapping[str, Any]


class Request(NamedTuple):
    """What is asked for, and what goes with it."""

    record: Record
    inputs: Inputs


class Preview(NamedTuple):
    """Where sampling is, and at how many frames per second what it shows is played."""

    progress: Progress
    fps: float


@dataclasses.dataclass(frozen=True)
class Video:
    """A video that was made.

    Attributes:
      playing: .mp4, to play and to keep.
      moving: .webp, for a gallery.
      record: how it was made; both files say so too.
    """

    playing: Path
    moving: Path
    record: Record


class Studio:
    """A model, and what is asked of it by whom.

    Attributes:
      model: the cascade.
      limits: what may be asked.
    """

    def __init__(self, model: Cascade, limits: Limits, folder: Path):
        """`folder` holds the newest `KEPT` videos."""
        self.model, self.limits = model, limits
        self._folder, self._jobs = folder, Jobs(limits.max_queue)
        self._kept: deque[Video] = deque()
        self._keeping = threading.Lock()

    def asked(self, task: Any, values: Mapping[str, Any]) -> Asked:
        """What a browser asks for. No file is opened.

        Args:
          task: its name.
          values: by name, what `walt.generation.record.resolve` takes, the task's options, and files for its inputs; `prompt`. None and ""
            stand for what the model does by itself, and what is of other tasks is left out. The prompts of a stream are lines of one text; those that
            go with `keyframes`, a list of files, are in `frames`, numbers with commas between them; a `storyboard` is a text.

        Raises:
          GenerationError: there is no such task, or something is missing or of another kind.
        """
        if not isinstance(task, str) or task not in TASKS:
            raise GenerationError(f"there is no task {task!r}{nearest(str(task), TASKS)}")
        takes, told = TASKS[task], {name: value for name, value in values.items() if value not in (None, "")}
        if told.get("fps") == self.model.fps:  # what the page shows at first: some tasks make another rate of it
            told.pop("fps")
        given = {name: told.pop(name) for name in (*INPUTS, FRAMES) if name in told}
        files: dict[str, str | Mapping[int, str]] = {}
        held: dict[str, Input] = {}
        for name, kind in takes.inputs.items():
            if name not in given:
                if name not in takes.optional:
                    raise GenerationError(f"{task} needs {NEEDED.get(kind, 'a file')}: {name.replace('_', ' ')}")
            elif kind == "storyboard":
                held[name] = self._storyboard(str(given[name]))
            else:
                files[name] = self._placed(given[name], given.get(FRAMES)) if kind == "pictures" else str(given[name])
        options = {name: told.pop(name) for name in OPTIONS if name in told}
        options = {
            name: as_option(name, value, takes.options[name])
            for name, value in options.items()
            if name in takes.options
        }
        settings = {
            name: _plain(name, value) for name, value in told.items() if name not in SIZES or name in takes.sizes
        }
        text = str(settings.pop("prompt", ""))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        prompts = {"prompt": [text], "prompts": lines or [text], "shots": []}[takes.words]
        return Asked(task, files, held, prompts, options, settings)

    def request(self, asked: Asked) -> Request:
        """It with its files, which are held in memory from here on.

        Raises:
          GenerationError: it cannot be done, or is more than the limits allow.
          MediaError: a file cannot be read, or is more than the limits allow.
        """
        takes, options = TASKS[asked.task], dict(asked.options)
        files, rate = self._read(asked)
        inputs = {**asked.held, **files}
        if takes.clip_fps and rate is not None:
            options["clip_fps"] = rate
        record = records.resolve(
            self.model, asked.prompts, task=asked.task, options=options, inputs=inputs, **asked.settings
        )
        self.limits.check(record, expected_frames(takes, record.num_frames, options, inputs, self.model.fps))
        return Request(record, inputs)

    def _read(self, asked: Asked) -> tuple[dict[str, Input], float | None]:
        """What is in the files, and frames per second of the first video."""
        size = self.model.stages[-1].check_size()
        inputs: dict[str, Input] = {}
        rates: list[float | None] = []
        for name, source in asked.files.items():
            try:
                inputs[name], rate = read_input(TASKS[asked.task].inputs[name], source, size, self.limits.files)
            except media.MediaError as error:  # whose message names a folder of this machine
                text = str(error)
                for path in [source] if isinstance(source, str) else source.values():
                    text = text.replace(path, Path(path).name)
                raise media.MediaError(text) from error
            rates.append(rate)
        return inputs, next((rate for rate in rates if rate is not None), None)

    def _storyboard(self, text: str) -> Storyboard:
        """That of a text. What it names of files is a path of the browser's making, and is not opened."""
        if len(text) > self.limits.max_storyboard:
            raise GenerationError(
                f"a storyboard has at most {self.limits.max_storyboard} characters here, got {len(text)}"
            )
        shots, images = parse_script(text, "JSON" if text.lstrip().startswith("{") else "YAML")
        if images:
            raise GenerationError(
                f"storyboard: shot {min(images)} begins with a picture, and this page reads none that a storyboard names: leave image out"
            )
        return Storyboard(shots)

    def _placed(self, files: Any, frames: Any) -> dict[int, str]:
        """Files by the frames that they belong to."""
        paths = [str(path) for path in files] if isinstance(files, list) else [str(files)]
        if len(paths) > self.limits.max_pictures:
            raise GenerationError(f"this page takes at most {self.limits.max_pictures} pictures, got {len(paths)}")
        numbers = [number.strip() for number in str(frames or "").split(",") if number.strip()]
        if not all(number.isdecimal() and len(number) < 10 for number in numbers):
            raise GenerationError(f"the frames of pictures are numbers, such as 0, 8, 16, got {str(frames)[:40]!r}")
        placed = dict(zip(map(int, numbers), paths, strict=False))
        if not len(paths) == len(numbers) == len(placed):
            raise GenerationError(
                f"each of the {len(paths)} pictures needs a frame of its own: their frames are {', '.join(numbers)[:40] or 'missing'}"
            )
        return placed

    def make(self, owner: str, asked: Asked) -> Iterator[Waiting | Preview | Video]:
        """Yields where sampling is, and at last the video. Files are read when its turn has come, so that what waits holds no memory.

        Raises as `Jobs.run` and `request` do.
        """
        if not asked.files:
            self.request(asked)  # what cannot be need not wait to be told so
        every = max(1, -(-asked.settings.get("steps", self.model.stages[0].sampler.steps) // PREVIEWS))
        begun: list[Record] = []

        def work() -> UInt8[np.ndarray, "n t h w 3"]:
            record, inputs = self.request(asked)
            begun.append(record)
            return records.generate(self.model, record, inputs)

        for news in self._jobs.run(owner, work, every):
            match news:
                case Waiting():
                    yield news
                case Progress():
                    yield Preview(news, begun[0].fps)
                case Done():
                    yield self._keep(news.result[0], begun[0].sized(news.result))

    def stop(self, owner: str | None = None) -> bool:
        """Stops what an owner has asked for, or everybody; whether there was anything."""
        return self._jobs.stop(owner)

    def _keep(self, video: UInt8[np.ndarray, "t h w 3"], record: Record) -> Video:
        name, scale = uuid.uuid4().hex, max(1, -(-SMALLEST // min(video.shape[1:3])))
        kept = Video(self._folder / f"walt-{name[:8]}.mp4", self._folder / f"walt-{name[:8]}.webp", record)
        for path in (kept.playing, kept.moving):
            media.write_video(path, video, record.fps, scale=scale, note=record.to_json())
        with self._keeping:
            self._kept.append(kept)
            too_old = [self._kept.popleft() for _ in range(len(self._kept) - KEPT)]
        for old in too_old:
            old.playing.unlink(missing_ok=True)
            old.moving.unlink(missing_ok=True)
        return kept


NUMBERS = {"guidance": (0, 1000), "fps": (1, 1000)}
WHOLE = ("num_frames", "height", "width", "steps", "seed")


def _plain(name: str, value: Any) -> Any:
    """A number as the model takes it: a browser sends 3.0 for 3."""
    if name in WHOLE:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise GenerationError(f"{name} must be a whole number, got {str(value)[:40]!r}")
    elif name in NUMBERS:
        low, high = NUMBERS[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise GenerationError(f"{name} must be a number from {low} to {high}, got {str(value)[:40]!r}")
    return value
