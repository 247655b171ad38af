"""The tasks of a model in one table: what each takes, so that a page or a command line can offer them all.

Each is a method of `Pipeline` of that name, which `walt.generation.record.generate` calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["image", "video", "mask", "pictures", "storyboard"]


@dataclasses.dataclass(frozen=True)
class Option:
    """What a task is told beside what every task is.

    Attributes:
      help: one line.
      default: a number, a word of the choices, or whether; None for a number that is the model's choice.
      low, high: of a number, a whole one if `low` is.
      choices: of a word.
      rare: whether it is a setting for those who know it.
    """

    help: str
    default: float | int | str | bool | None
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()
    rare: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """What can be asked of a model.

    Attributes:
      line: what it makes.
      inputs: what it is given, by argument: an `image`, a `video`, a `mask`, `pictures` by their frame, or a `storyboard`.
      optional: which of them may be left out, and whether its `prompt` may.
      options: what it is told, by argument.
      sizes: which of `num_frames`, `height` and `width` it takes; what others make is as large as their inputs.
      words: what it reads: one `prompt`; `prompts`, one after the other, of a video that comes as it is made and may be of any length; or the
        prompts of `shots`.
      seconds: how long its video is unless it is told, of one that is not as long as the model's.
      clip_fps: whether it is told the frame rate of its first video.
      faster: the option by which frames per second are multiplied.
    """

    line: str
    inputs: Mapping[str, Kind] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    words: Literal["prompt", "prompts", "shots"] = "prompt"
    seconds: float | None = None
    clip_fps: bool = False
    faster: str = ""

    def speed(self, options: Mapping[str, Any]) -> float:
        """By how much frames per second are multiplied."""
        return float(options.get(self.faster, self.options[self.faster].default)) if self.faster else 1.0


SIZES = ("num_frames", "height", "width")
VIDEO: Mapping[str, Kind] = {"video": "video"}
REUSE: dict[str, Option] = {
    "reuse": Option("How much that is new may be left out between steps, for speed", None, 0.0, 1.0, rare=True)
}
SAMPLING = REUSE | {
    "visits": Option(
        "Times that each step is taken, which helps models that know by replacement", None, 1, 16, rare=True
    )
}
STRENGTH: dict[str, Option] = {"strength": Option("Strength: 0 keeps the video, 1 forgets it", 0.5)}
KEEP: dict[str, Option] = {"keep_pixels": Option("Keep the very pixels of what is given", False)}


def _seconds(what: str, default: float | None) -> Mapping[str, Option]:
    return {"seconds": Option(f"Seconds {what}", default, 0.01, 3600.0)}


TASKS: Mapping[str, Task] = {
    "generate": Task("a video of a prompt", options=REUSE, sizes=SIZES),
    "animate": Task(
        "a video that begins with a picture",
        {"image": "image"},
        options=KEEP | SAMPLING,
        sizes=("num_frames",),
    ),
    "keyframes": Task(
        "a video through pictures",
        {"keyframes": "pictures"},
        options=KEEP | SAMPLING,
        sizes=("num_frames",),
    ),
    "predict": Task(
        "how a video goes on, from its last frames",
        VIDEO,
        options=KEEP | SAMPLING,
        sizes=("num_frames",),
        clip_fps=True,
    ),
    "extend": Task(
        "a video made longer",
        VIDEO,
        options={
            **_seconds("to add", 1.0),
            "direction": Option("At which end", "forward", choices=("forward", "backward", "both")),
            **KEEP,
            **SAMPLING,
        },
        clip_fps=True,
    ),
    "connect": Task(
        "two videos with a transition between them",
        {"first": "video", "second": "video"},
        options={**_seconds("of the transition", None), **KEEP, **SAMPLING},
        clip_fps=True,
    ),
    "loop": Task(
        "a video that repeats without a seam, new or of one that is given",
        VIDEO,
        ("video",),
        {**_seconds("of the loop, or of what is added to a video", None), **KEEP, **SAMPLING},
        clip_fps=True,
    ),
    "edit": Task("a video painted over", VIDEO, options=STRENGTH | SAMPLING, clip_fps=True),
    "vary": Task("another video like this one", VIDEO, ("prompt",), options=STRENGTH | SAMPLING, clip_fps=True),
    "inpaint": Task(
        "a video painted anew where a mask is white",
        {"video": "video", "mask": "mask"},
        options=KEEP | SAMPLING,
        clip_fps=True,
    ),
    "outpaint": Task(
        "a video with more around it",
        VIDEO,
        options=KEEP | SAMPLING,
        sizes=("height", "width"),
        clip_fps=True,
    ),
    "interpolate": Task(
        "a video with more frames per second",
        VIDEO,
        ("prompt",),
        {"factor": Option("Times as many frames", 2, 2, 8), **STRENGTH, **SAMPLING},
        clip_fps=True,
        faster="factor",
    ),
    "stream": Task(
        "a video of any length, whose prompt may change on the way",
        VIDEO,
        ("video",),
        {
            "context_noise": Option("Noise with which it looks back, against drift", 0.1, 0.0, 0.99, rare=True),
            **SAMPLING,
        },
        sizes=("num_frames",),
        words="prompts",
        seconds=60.0,
        clip_fps=True,
    ),
    "storyboard": Task("a video of shots", {"storyboard": "storyboard"}, options=SAMPLING, words="shots"),
}
INPUTS: Mapping[str, Kind] = {name: kind for task in TASKS.values() for name, kind in task.inputs.items()}
"""Those of all tasks; a name means the same in all of them."""
OPTIONS: Mapping[str, Option] = {name: option for task in TASKS.values() for name, option in task.options.items()}
"""Those of all tasks, likewise, but for words and defaults."""
