"""The folder of checkpoints of a work directory: what in it is whole, what an interruption left, and what is not walt's.

A checkpoint counts once it is whole: Orbax writes a mark after everything else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
from etils import epath
from jax.experimental import multihost_utils

from walt.config import ConfigError
from walt.training.checksums import DamageError

FOLDER = "checkpoints"
ITEMS = ("weights", "training", "config", "clock")
COMMITTED = "commit_success.txt"
ORBAX_MARKS = (COMMITTED, "_CHECKPOINT_METADATA")
REPLACED, INCOMPLETE = ".replaced", ".incomplete"
UNSAVED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
LEFTOVER = re.compile(r"\d+(\.replaced|\.incomplete|\.orbax-checkpoint-tmp.*)")
DAMAGE = ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
"""How TensorStore begins an error about bytes that are not what was written."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it."""


def check_folder(workdir: epath.PathLike) -> None:
    """Refuse (`ConfigError`) a work directory whose checkpoints are those of another program: Orbax would count them as
    its own, and delete them.
    """
    foreign = sorted(entry.name for entry in scan(workdir).foreign)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ConfigError(
            f"{epath.Path(workdir) / FOLDER} holds {', '.join(foreign[:3])}{more}, which is no checkpoint of walt, so it "
            "was left as it is: move that away, or choose another workdir"
        )


def recover(workdir: epath.PathLike) -> None:
    """Tidies what an interrupted save left in a work directory; every process of a job calls it, before it trains.

    A checkpoint that was being replaced comes back if its replacement is not whole. What a save left half-written is removed; another
    one that is not whole, such as a copy that was cut short, is renamed, else Orbax would take it for a whole one.
    """
    multihost_utils.sync_global_devices("checkpoints seen")  # by every process, as they were
    if jax.process_index() == 0:
        for step, folder in scan(workdir).whole.items():
            proper = folder.with_name(str(step))
            if folder != proper:
                put_back(folder)
                logging.warning("checkpoint %s was being replaced and is used again", proper)
        found = scan(workdir)
        for entry in found.unfinished:
            step_name = entry.name.removesuffix(REPLACED)
            if step_name != entry.name and int(step_name) in found.whole:
                entry.rmtree()
                continue
            if not entry.name.endswith(INCOMPLETE):
                logging.warning("ignoring half-written checkpoint %s", entry)
            if UNSAVED.fullmatch(entry.name):
                entry.rmtree()
            elif entry.name.isdigit():
                _rename(entry, entry.with_name(entry.name + INCOMPLETE))
    multihost_utils.sync_global_devices("checkpoints recovered")


def remove_unsaved(workdir: epath.PathLike) -> None:
    """Removes what a save that has failed left half-written."""
    for entry in scan(workdir).unfinished:
        if UNSAVED.fullmatch(entry.name):
            entry.rmtree()


def put_back(replaced: epath.Path) -> None:
    """Makes a checkpoint that was put aside that of its step again; what lies there is not whole, and renamed."""
    proper = replaced.with_name(replaced.name.removesuffix(REPLACED))
    _rename(proper, replaced.with_name(f"{proper.name}{INCOMPLETE}"))
    replaced.rename(proper)


def _rename(entry: epath.Path, target: epath.Path) -> None:
    if entry.exists():
        if target.exists():
            target.rmtree()
        entry.rename(target)


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of the latest whole checkpoint of a work directory, or None."""
    return max(scan(workdir).whole, default=None)


@dataclass(frozen=True)
class Found:
    """What lies in a folder of checkpoints: step → folder of the whole ones, what an interruption left, and what is not
    walt's. A whole checkpoint whose replacement is not whole counts, where it was put aside.
    """

    whole: dict[int, epath.Path]
    unfinished: list[epath.Path]
    foreign: list[epath.Path]


def scan(workdir: epath.PathLike) -> Found:
    directory = epath.Path(workdir) / FOLDER
    entries = [entry for entry in directory.iterdir() if entry.name[0] != "."] if directory.is_dir() else []
    ours = [entry for entry in entries if _is_ours(entry)]
    whole: dict[int, epath.Path] = {}
    for entry in sorted(ours, key=lambda entry: not entry.name.endswith(REPLACED)):  # replacements last: they count
        step = entry.name.removesuffix(REPLACED)
        if step.isdigit() and is_whole(entry):
            whole[int(step)] = entry
    return Found(
        whole,
        unfinished=[entry for entry in ours if entry not in whole.values()],
        foreign=[entry for entry in entries if entry not in ours],
    )


def _is_ours(entry: epath.Path) -> bool:
    """Whether a name, or what is inside, says that walt or Orbax wrote it here. A deletion that was interrupted may have
    left an empty folder.
    """
    if not entry.name.isdigit() or not entry.is_dir():
        return LEFTOVER.fullmatch(entry.name) is not None
    content = _content(entry) - set(ORBAX_MARKS)
    return not content or not content.isdisjoint(ITEMS)


def _content(folder: epath.Path) -> set[str]:
    """The names in a folder; none if the run that works here has just deleted it."""
    with reading(folder), contextlib.suppress(FileNotFoundError):
        return {entry.name for entry in folder.iterdir()}
    return set()


def is_whole(path: epath.Path) -> bool:
    """Whether a checkpoint has all its items and marks."""
    # Orbax writes this file into each item and then into the checkpoint, after everything else.
    return all((path / item / COMMITTED).exists() for item in (*ITEMS, "."))


@contextlib.contextmanager
def reading(folder: epath.Path) -> Iterator[None]:
    """Whatever goes wrong becomes a `CheckpointError` with its cause: never a silent fresh start."""
    try:
        yield
    except Exception as error:
        cause = str(error).split(" [tensorstore_spec=")[0] or type(error).__name__
        advice = _advice(folder) if _is_damage(error) else ""
        raise CheckpointError(f"checkpoint {folder} cannot be read: {cause}{advice}") from error


def _advice(damaged: epath.Path) -> str:
    """What to do about a damaged checkpoint: nothing is done silently."""
    steps = [int(entry.name) for entry in damaged.parent.iterdir() if entry.name.isdigit() and is_whole(entry)]
    before = max((step for step in steps if damaged.name.isdigit() and step < int(damaged.name)), default=None)
    if before is None:
        return "; it is damaged, and there is none before it"
    return f"; it is damaged: move it out of {FOLDER} to go back to the one before it, of step {before}"


def _is_damage(error: Exception) -> bool:
    """Whether files are missing or hold something else than was written, which another attempt will not change."""
    if isinstance(error, (DamageError, FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, ConfigError)):
        return True
    return isinstance(error, ValueError) and str(error).startswith(DAMAGE)
