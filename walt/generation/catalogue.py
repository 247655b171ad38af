"""The tasks of a model in one table: what each takes beside a prompt, so that a page or a command line can offer them all.

Each is a method of `Pipeline` of that name, which `walt.generation.record.generate` calls. Methods that take what does not fit into a form (keyframes,
streams, storyboards) are not among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Option:
    """What a task is told beside what every task is.

    Attributes:
      help: one line.
      default: a number, a word of the choices, or whether.
      low, high: of a number.
      choices: of a word.
    """

    help: str
    default: float | int | str | bool
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What can be asked of a model.

    Attributes:
      line: what it makes.
      inputs: files that it takes: argument -> `image`, `video` or `mask`.
      options: what it is told, by argument.
      sizes: which of `num_frames`, `height` and `width` it takes; what others make is as large as their inputs.
      clip_fps: whether it is told the frame rate of its first video.
      faster: the option by which frames per second are multiplied.
    """

    line: str
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    clip_fps: bool = False
    faster: str = ""


SIZES = ("num_frames", "height", "width")
STRENGTH = Option("Strength: 0 keeps the video, 1 forgets it", 0.5)
SECONDS = Option("Seconds to add", 1.0, 0.1, 3600.0)
KEEP = Option("Keep the very pixels of what is given", False)
VIDEO = {"video": "video"}

TASKS: Mapping[str, Task] = {
    "generate": Task("a video of a prompt", sizes=SIZES),
    "animate": Task(
        "a video that begins with a picture", {"image": "image"}, {"keep_pixels": KEEP}, sizes=("num_frames",)
    ),
    "predict": Task(
        "how a video goes on, from its last frames", VIDEO, {"keep_pixels": KEEP}, sizes=("num_frames",), clip_fps=True
    ),
    "extend": Task(
        "a video made longer",
        VIDEO,
        {
            "seconds": SECONDS,
            "direction": Option("At which end", "forward", choices=("forward", "backward", "both")),
            "keep_pixels": KEEP,
        },
        clip_fps=True,
    ),
    "connect": Task(
        "two videos with a transition between them",
        {"first": "video", "second": "video"},
        {"seconds": SECONDS, "keep_pixels": KEEP},
        clip_fps=True,
    ),
    "loop": Task("a video that repeats without a seam"),
    "edit": Task("a video painted over", VIDEO, {"strength": STRENGTH}, clip_fps=True),
    "vary": Task("another video like this one", VIDEO, {"strength": STRENGTH}, clip_fps=True),
    "inpaint": Task(
        "a video painted anew where a mask is white",
        {"video": "video", "mask": "mask"},
        {"keep_pixels": KEEP},
        clip_fps=True,
    ),
    "outpaint": Task(
        "a video with more around it",
        VIDEO,
        {"keep_pixels": KEEP},
        sizes=("height", "width"),
    ),
    "interpolate": Task(
        "a video with more frames per second",
        VIDEO,
        {"factor": Option("Times as many frames", 2, 2, 8), "strength": STRENGTH},
        faster="factor",
    ),
}
INPUTS: Mapping[str, str] = {name: kind for task in TASKS.values() for name, kind in task.inputs.items()}
"""Those of all tasks; a name means the same in all of them."""
OPTIONS: Mapping[str, Option] = {name: option for task in TASKS.values() for name, option in task.options.items()}
"""Those of all tasks, likewise."""
