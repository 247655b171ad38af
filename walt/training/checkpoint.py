"""Checkpoints: the whole state, the metrics clock and the resolved config, in `workdir/checkpoints/<step>/`.

The position in the data needs no entry of its own: it is the step. Saving goes on in the background while training
does; a save that fails, fails the run. A checkpoint counts once it is whole; what an interrupted save left behind is
ignored, with a line that says so. The config is JSON, arrays are Orbax's: nothing here is code.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from walt.config import ConfigError, diff, from_json, to_json
from walt.parallel.rules import path_name
from walt.training.state import TrainState
from walt.training.task import Tree

FOLDER = "checkpoints"
ITEMS = ("weights", "training", "config", "clock")
COMMITTED = "commit_success.txt"
ORBAX_MARKS = (COMMITTED, "_CHECKPOINT_METADATA")
REPLACED, INCOMPLETE = ".replaced", ".incomplete"
LEFTOVER = re.compile(r"\d+(\.replaced|\.incomplete|\.orbax-checkpoint-tmp.*)")
DAMAGE = ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT")
"""How TensorStore begins an error about bytes that are not what was written."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it."""


@dataclass(frozen=True)
class Clock:
    """The state of the metrics: `seconds` trained so far, and the sums since the last line of the log, so that a
    resumed run writes the same lines.
    """

    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False


class Checkpoints:
    """The checkpoints of one work directory, for one training run. Use as a context manager: leaving it waits for the
    last save.
    """

    def __init__(self, workdir: epath.PathLike, keep: int):
        self.directory = epath.Path(workdir).resolve() / FOLDER
        self.latest = latest_step(workdir)
        policy = ocp.checkpoint_managers.preservation_policy.LatestN(keep)
        self._manager = ocp.CheckpointManager(
            self.directory, item_names=ITEMS, options=ocp.CheckpointManagerOptions(preservation_policy=policy)
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._manager.close()

    def save(self, state: TrainState, step: int, clock: Clock, config: ConfigDict, *, wait: bool = False) -> None:
        """Save in the background (or before returning, with `wait`); raises what an earlier save in the background met.

        A checkpoint of the same step is replaced: it is removed only after the new one is whole.
        """
        self.check()
        replaced = None
        if step == self.latest:
            self.wait()
            replaced = self.directory / f"{step}{REPLACED}"
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(replaced)
            multihost_utils.sync_global_devices("replacing a checkpoint")
            self._manager.reload()
        arguments = ocp.args.Composite(
            weights=ocp.args.StandardSave({"params": state.params, "ema": state.ema, "extra": state.extra}),
            training=ocp.args.StandardSave({"step": state.step, "opt": state.opt, "key": state.key}),
            config=ocp.args.JsonSave(json.loads(to_json(config))),
            clock=ocp.args.JsonSave(vars(clock)),
        )
        try:
            saved = self._manager.save(step, args=arguments, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        if not saved:
            raise CheckpointError(f"checkpoint {self.directory / str(step)} was not written: a later one exists")
        self.latest = step
        if wait or replaced:
            self.wait()
        if replaced and jax.process_index() == 0:
            replaced.rmtree()

    def check(self) -> None:
        """Raise the error of a save that failed in the background."""
        try:
            self._manager.check_for_errors()
        except Exception as error:  # whatever the background thread met
            raise self._failed(error) from error

    def wait(self) -> None:
        """Until everything is on disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error
        self.check()

    def _failed(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"a checkpoint in {self.directory} could not be written: {error}")

    def restore(self, abstract: TrainState) -> tuple[TrainState, Clock]:
        """The latest state, placed on the devices that `abstract` names: any mesh, not only that of the run which saved
        it.

        `ConfigError` if the checkpoint is that of another model or optimiser, `CheckpointError` if it cannot be read.
        """
        assert self.latest is not None
        folder = self.directory / str(self.latest)
        wanted = {
            "weights": {"params": abstract.params, "ema": abstract.ema, "extra": abstract.extra},
            "training": {"step": abstract.step, "opt": abstract.opt, "key": abstract.key},
        }
        with _reading(folder):
            stored = {item: _stored_tree(folder / item) for item in wanted}
        _check_same_arrays(folder, stored, wanted)
        # Orbax wants the structure that it stored, down to containers without arrays; the names alone decide what is what.
        arguments = {item: ocp.args.StandardRestore(_arranged(wanted[item], stored[item])) for item in wanted}
        with _reading(folder):
            restored = self._manager.restore(
                self.latest, args=ocp.args.Composite(**arguments, clock=ocp.args.JsonRestore())
            )
            clock = _clock(restored["clock"])
        values = {item: _arranged(restored[item], wanted[item]) for item in wanted}
        return TrainState(**values["weights"], **values["training"]), clock


def check_folder(workdir: epath.PathLike) -> None:
    """Refuse (`ConfigError`) a work directory whose checkpoints are those of another program: Orbax would count them as
    its own, and delete them.
    """
    foreign = sorted(entry.name for entry in _scan(workdir).foreign)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ConfigError(
            f"{epath.Path(workdir) / FOLDER} holds {', '.join(foreign[:3])}{more}, which is no checkpoint of walt, so it "
            "was left as it is: move that away, or choose another workdir"
        )


def recover(workdir: epath.PathLike) -> None:
    """Tidies what an interrupted save left in a work directory; every process of a job calls it, before it trains.

    A checkpoint that was being replaced comes back if its replacement is not whole. A half-written one is renamed, else
    Orbax would take it for a whole one.
    """
    multihost_utils.sync_global_devices("checkpoints seen")  # by every process, as they were
    if jax.process_index() == 0:
        for step, folder in _scan(workdir).whole.items():
            proper = folder.with_name(str(step))
            if folder != proper:
                _rename(proper, folder.with_name(f"{step}{INCOMPLETE}"))
                folder.rename(proper)
                logging.warning("checkpoint %s was being replaced and is used again", proper)
        found = _scan(workdir)
        for entry in found.unfinished:
            step_name = entry.name.removesuffix(REPLACED)
            if step_name != entry.name and int(step_name) in found.whole:
                entry.rmtree()
                continue
            if not entry.name.endswith(INCOMPLETE):
                logging.warning("ignoring half-written checkpoint %s", entry)
            if entry.name.isdigit():
                _rename(entry, entry.with_name(entry.name + INCOMPLETE))
    multihost_utils.sync_global_devices("checkpoints recovered")


def _rename(entry: epath.Path, target: epath.Path) -> None:
    if entry.exists():
        if target.exists():
            target.rmtree()
        entry.rename(target)


def latest_step(workdir: epath.PathLike) -> int | None:
    """The step of the latest whole checkpoint of a work directory, or None."""
    return max(_scan(workdir).whole, default=None)


def stored_config(workdir: epath.PathLike, step: int | None = None) -> ConfigDict:
    """The resolved config in the latest (or the given) checkpoint; `CheckpointError` if there is none."""
    _, folder = _chosen(workdir, step)
    with _reading(folder):
        return from_json((folder / "config" / "metadata").read_text())


def stored_clock(workdir: epath.PathLike, step: int | None = None) -> Clock:
    """The clock in the latest (or the given) checkpoint; `CheckpointError` if there is none."""
    _, folder = _chosen(workdir, step)
    with _reading(folder):
        return _clock(json.loads((folder / "clock" / "metadata").read_text()))


def _clock(values: Any) -> Clock:
    """The clock that a checkpoint says; `ValueError` or `TypeError` if it is none."""
    clock = Clock(**values)
    for name, default in vars(Clock()).items():
        numbers = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(vars(clock)[name], numbers):
            raise ValueError(f"the clock's {name} cannot be {vars(clock)[name]!r}")
    if not all(isinstance(value, (int, float)) for value in clock.window.values()):
        raise ValueError("the clock's window holds something else than numbers")
    return clock


def check_config(workdir: epath.PathLike, config: ConfigDict, model_keys: Sequence[str]) -> list[str]:
    """Refuse (`ConfigError` with the differences) to resume with another value under `model_keys`; returns the other
    differences.

    `model_keys` are dotted prefixes of the config, such as "transformer": whatever decides what the parameters mean and
    what they learn from. What the stored config does not name contradicts nothing: an older version did not know it.
    """

    def is_fatal(line: str) -> bool:
        name, _, change = line.partition(": ")
        return not change.startswith("(absent)") and any(f"{name}.".startswith(f"{key}.") for key in model_keys)

    changed = diff(stored_config(workdir), from_json(to_json(config)))
    fatal = [line for line in changed if is_fatal(line)]
    if fatal:
        raise ConfigError(
            f"{workdir} holds a run of another config, so it was left as it is; choose another workdir, or undo:\n  "
            + "\n  ".join(fatal)
            + "".join(f"\nalso changed, which alone would be fine: {line}" for line in changed if line not in fatal)
        )
    return changed


def restore_parts(
    workdir: epath.PathLike, step: int | None = None
) -> tuple[dict[str, Tree], dict[str, Tree], Tree, ConfigDict, int]:
    """(params, ema, extra, config, step) as trees of numpy arrays, from the latest (or the given) checkpoint.

    Needs neither the task nor the optimiser nor the devices of the run. `CheckpointError` if there is no such
    checkpoint or it cannot be read.
    """
    for entry in _scan(workdir).unfinished:
        logging.warning("ignoring half-written checkpoint %s", entry)
    step, folder = _chosen(workdir, step)
    path = folder.resolve() / "weights"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, _reading(folder):
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _stored_tree(path))
        weights = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return weights["params"], weights["ema"], weights["extra"], stored_config(workdir, step), step


def _stored_tree(path: epath.Path) -> Any:
    """The tree of an item as it was saved, with descriptions in place of arrays."""
    # The handler itself: a checkpointer would answer None, and hide why.
    return ocp.PyTreeCheckpointHandler().metadata(path).tree


def _named(tree: Any) -> dict[str, Any]:
    """Path → array, in the order of the leaves.

    Of a sequence, only elements with arrays are counted: stages of an optimiser that remember nothing may come and go.
    """
    named: dict[str, Any] = {}
    places: dict[tuple[Any, ...], dict[int, int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = list(path)
        for depth, key in enumerate(path):
            if isinstance(key, jax.tree_util.SequenceKey):
                seen = places.setdefault(path[:depth], {})
                keys[depth] = jax.tree_util.SequenceKey(seen.setdefault(key.idx, len(seen)))
        named[path_name(tuple(keys))] = leaf
    return named


def _arranged(values: Any, like: Any) -> Any:
    """The arrays of `values` in the structure of `like`, found by their names."""
    arrays = _named(values)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])


def _shapes(trees: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name → shape of every array of every item, as it is stored: a random key as the numbers it is made of."""
    return {name: _stored_shape(leaf) for tree in trees.values() for name, leaf in _named(tree).items()}


def _stored_shape(leaf: Any) -> tuple[int, ...]:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return tuple(jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape)


def _check_same_arrays(folder: epath.Path, stored_trees: dict[str, Any], wanted_trees: dict[str, Any]) -> None:
    """`ConfigError` naming some arrays that the checkpoint has and this run does not, or the other way round."""
    stored, wanted = _shapes(stored_trees), _shapes(wanted_trees)
    changed = [name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)]
    if changed:
        shown = ", ".join(
            f"{name} ({stored.get(name, 'absent')} in the checkpoint, {wanted.get(name, 'absent')} now)"
            for name in changed[:3]
        )
        raise ConfigError(
            f"checkpoint {folder} is that of another model, optimiser or moving average: {len(changed)} of its arrays differ, "
            f"such as {shown}; undo the change of the config, or start in another workdir (with init_from to keep the weights)"
        )


@contextlib.contextmanager
def _reading(folder: epath.Path) -> Iterator[None]:
    """Whatever goes wrong becomes a `CheckpointError` with its cause: never a silent fresh start."""
    try:
        yield
    except Exception as error:
        cause = str(error).split(" [tensorstore_spec=")[0] or type(error).__name__
        advice = (
            f"; it is damaged: move it out of {FOLDER} to go back to the one before it" if _is_damage(error) else ""
        )
        raise CheckpointError(f"checkpoint {folder} cannot be read: {cause}{advice}") from error


def _is_damage(error: Exception) -> bool:
    """Whether files are missing or hold something else than was written, which another attempt will not change."""
    if isinstance(error, (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, ConfigError)):
        return True
    return isinstance(error, ValueError) and str(error).startswith(DAMAGE)


def _chosen(workdir: epath.PathLike, step: int | None) -> tuple[int, epath.Path]:
    """The latest (or the given) step and the folder of its checkpoint; `CheckpointError` if there is none."""
    whole = _scan(workdir).whole
    if not whole:
        raise CheckpointError(f"{workdir} holds no checkpoint (looked in {epath.Path(workdir) / FOLDER})")
    chosen = max(whole) if step is None else step
    if chosen not in whole:
        raise CheckpointError(f"{workdir} holds no checkpoint of step {step}; its latest is {max(whole)}")
    return chosen, whole[chosen]


@dataclass(frozen=True)
class _Found:
    """What lies in a folder of checkpoints: step → folder of the whole ones, what an interruption left, and what is not
    walt's. A whole checkpoint whose replacement is not whole counts, where it was put aside.
    """

    whole: dict[int, epath.Path]
    unfinished: list[epath.Path]
    foreign: list[epath.Path]


def _scan(workdir: epath.PathLike) -> _Found:
    directory = epath.Path(workdir) / FOLDER
    entries = [entry for entry in directory.iterdir() if entry.name[0] != "."] if directory.is_dir() else []
    ours = [entry for entry in entries if _is_ours(entry)]
    whole: dict[int, epath.Path] = {}
    for entry in sorted(ours, key=lambda entry: not entry.name.endswith(REPLACED)):  # replacements last: they count
        step = entry.name.removesuffix(REPLACED)
        if step.isdigit() and _is_whole(entry):
            whole[int(step)] = entry
    return _Found(
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
    with _reading(folder), contextlib.suppress(FileNotFoundError):
        return {entry.name for entry in folder.iterdir()}
    return set()


def _is_whole(path: epath.Path) -> bool:
    # Orbax writes this file into each item and then into the checkpoint, after everything else.
    return all((path / item / COMMITTED).exists() for item in (*ITEMS, "."))
