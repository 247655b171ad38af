"""The tasks of a model, in one table: what each takes beside a prompt. `generate` of `walt.generation.record` does them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Option:
    """What a task is told beside what every task is.

    Attributes:
      help: one line.
      default: a number, or one of the choices.
      low, high: of a number.
      choices: of a word.
    """

    help: str
    default: float | int | str
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
    """

    line: str
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)


TASKS: Mapping[str, Task] = {"generate": Task("a video of a prompt")}
INPUTS: Mapping[str, str] = {name: kind for task in TASKS.values() for name, kind in task.inputs.items()}
"""Those of all tasks; a name means the same in all of them."""
OPTIONS: Mapping[str, Option] = {name: option for task in TASKS.values() for name, option in task.options.items()}
"""Those of all tasks, likewise."""
