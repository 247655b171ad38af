"""The folder of checkpoints of a work directory: what in it is whole, what an interruption left, and what is not walt's.

A checkpoint counts once it is whole: Orbax writes a mark after everything else. On a file system a save gets its name by being renamed in
the end, so one that lacks something under its own name was damaged. In a bucket it is written under its name, and that mark alone tells.
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
from walt.jsonlines import is_in_bucket
from walt.training import checksums
from walt.training.checksums import DamageError

FOLDER = "checkpoints"
ITEMS = ("weights", "training", "config", "clock")
COMMITTED = "commit_success.txt"
ORBAX_MARKS = (COMMITTED, "_CHECKPOINT_METADATA")
REPLACED = ".replaced"
UNSAVED = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
ASIDE = ".incomplete"  # what an older version renamed in place of removing it
LEFTOVER = re.compile(r"\d+(\.replaced|\.incomplete|\.orbax-checkpoint-tmp.*)")
DAMAGE = ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
"""How TensorStore begins an error about bytes that are not what was written."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it."""


def check_folder(workdir: epath.PathLike) -> None:
    """Refuse (`ConfigError`) a work directory that is none, or whose checkpoints are those of another program: Orbax would count them as
    its own, and delete them.
    """
    path = epath.Path(workdir)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file: a work directory must be a folder, or not be there yet")
    foreign = sorted(entry.name for entry in scan(workdir).foreign)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ConfigError(
            f"{epath.Path(workdir) / FOLDER} holds {', '.join(foreign[:3])}{more}, which is no checkpoint of walt, so it "
            "was left as it is: move that away, or choose another workdir"
        )


def check_newest(workdir: epath.PathLike) -> None:
    """`CheckpointError` if a checkpoint later than all whole ones is damaged: going on from one before it is not to happen silently. Of
    those before, one that lacks something may be what is left of a deletion.
    """
    if not _damaged(scan(workdir)):
        return
    # A run that works here may have saved a later one meanwhile, and be deleting this one.
    for entry in _damaged(scan(workdir)):
        missing = [str(mark.relative_to(entry)) for mark in _marks(entry) if not mark.exists()]
        with reading(entry):
            raise DamageError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def recover(workdir: epath.PathLike) -> None:
    """Tidies what an interrupted save left in a work directory; every process of a job calls it, before it trains.

    A checkpoint that was being replaced comes back if its replacement is not whole. What a save left half-written and a deletion half-deleted
    is removed.
    """
    multihost_utils.sync_global_devices("checkpoints seen")  # by every process, as they were
    if jax.process_index() == 0:
        for step, folder in scan(workdir).whole.items():
            proper = folder.with_name(str(step))
            if folder != proper:
                put_back(folder)
                logging.warning("checkpoint %s was being replaced and is used again", proper)
        found = scan(workdir)
        for entry in set(found.unfinished) - set(_damaged(found)):
            logging.warning("removing %s, which an interruption has left", entry)
            entry.rmtree()
    multihost_utils.sync_global_devices("checkpoints recovered")


def remove_unsaved(workdir: epath.PathLike) -> None:
    """Removes what a save that has failed left half-written."""
    for entry in scan(workdir).unfinished:
        if UNSAVED.fullmatch(entry.name):
            entry.rmtree()


def put_back(replaced: epath.Path) -> None:
    """Makes a checkpoint that was put aside that of its step again; what lies there is not whole, and removed."""
    proper = replaced.with_name(replaced.name.removesuffix(REPLACED))
    if proper.exists():
        proper.rmtree()
    replaced.rename(proper)


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of the latest whole checkpoint of a work directory, or None."""
    return max(scan(workdir).whole, default=None)


@dataclass(frozen=True)
class Found:
    """What lies in a folder of checkpoints: step → folder of the whole ones, what an interruption left, and what is not
    walt's. A whole checkpoint whose replacement is not whole counts, where it was put aside. Both may bear all marks where a bucket, which
    moves file by file, was interrupted: then the one counts that has all its files.
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
        if step.isdigit() and is_whole(entry) and (int(step) not in whole or checksums.complete(entry)):
            whole[int(step)] = entry
    return Found(
        whole,
        unfinished=[e for e in ours if e not in whole.values() and not e.name.endswith(ASIDE)],
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
    return all(mark.exists() for mark in _marks(path))


def _marks(path: epath.Path) -> list[epath.Path]:
    """What Orbax writes into each item and then into the checkpoint, after everything else."""
    return [path / COMMITTED, *(path / item / COMMITTED for item in ITEMS)]


def _damaged(found: Found) -> list[epath.Path]:
    """What is not whole but was once, and is no remainder of a deletion, for those come when there are later ones."""
    later = [e for e in found.unfinished if e.name.isdigit() and int(e.name) > max(found.whole, default=-1)]
    return [entry for entry in later if not is_in_bucket(entry) or (entry / COMMITTED).exists()]


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
        return "; it is damaged, and there is none before it: move the work directory away to begin again"
    return f"; it is damaged: move it out of {FOLDER} to go back to the one before it, of step {before}"


def _is_damage(error: Exception) -> bool:
    """Whether files are missing or hold something else than was written, which another attempt will not change."""
    if isinstance(error, (DamageError, FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, ConfigError)):
        return True
    return isinstance(error, ValueError) and str(error).startswith(DAMAGE)
