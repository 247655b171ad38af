"""Checkpoints: the whole state, the metrics clock and the resolved config, in `workdir/checkpoints/<step>/`.

The position in the data needs no entry of its own: it is the step. Saving goes on in the background while training
does; a save that fails, fails the run. A checkpoint counts once it is whole; what an interrupted save left behind is
ignored, with a line that says so. The config is JSON, arrays are Orbax's: nothing here is code.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
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
REPLACED, INCOMPLETE = ".replaced", ".incomplete"


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
        weights = {"params": abstract.params, "ema": abstract.ema, "extra": abstract.extra}
        training = {"step": abstract.step, "opt": abstract.opt, "key": abstract.key}
        arguments = ocp.args.Composite(
            weights=ocp.args.StandardRestore(weights),
            training=ocp.args.StandardRestore(training),
            clock=ocp.args.JsonRestore(),
        )
        with _reading(folder):
            stored = {**_stored_shapes(folder / "weights"), **_stored_shapes(folder / "training")}
        _check_same_arrays(folder, stored, {**_shapes(weights), **_shapes(training)})
        with _reading(folder):
            restored = self._manager.restore(self.latest, args=arguments)
        clock = Clock(**restored["clock"])
        return TrainState(**restored["weights"], **restored["training"]), clock


def recover(workdir: epath.PathLike) -> None:
    """Tidies what an interrupted save left in a work directory; every process of a job calls it, before it trains.

    A checkpoint that was being replaced comes back if its replacement is not whole. A half-written one is renamed, else
    Orbax would take it for a whole one.
    """
    steps, unfinished = _scan(workdir)
    if jax.process_index() == 0:
        for entry in unfinished:
            step = entry.name.removesuffix(REPLACED)
            if step != entry.name and _is_whole(entry):
                if int(step) in steps:
                    entry.rmtree()
                    continue
                _rename(entry.with_name(step), entry.with_name(step + INCOMPLETE))
                entry.rename(entry.with_name(step))
                logging.warning("checkpoint %s was being replaced and is used again", entry.with_name(step))
        for entry in _scan(workdir)[1]:
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
    return max(_scan(workdir)[0], default=None)


def stored_config(workdir: epath.PathLike, step: int | None = None) -> ConfigDict:
    """The resolved config in the latest (or the given) checkpoint; `CheckpointError` if there is none."""
    path = epath.Path(workdir) / FOLDER / str(_chosen(workdir, step)) / "config" / "metadata"
    return from_json(path.read_text())


def stored_clock(workdir: epath.PathLike, step: int | None = None) -> Clock:
    """The clock in the latest (or the given) checkpoint; `CheckpointError` if there is none."""
    path = epath.Path(workdir) / FOLDER / str(_chosen(workdir, step)) / "clock" / "metadata"
    return Clock(**json.loads(path.read_text()))


def check_config(workdir: epath.PathLike, config: ConfigDict, model_keys: tuple[str, ...]) -> None:
    """Refuse (`ConfigError` with the differences) to resume with another value under `model_keys`; log other
    differences.

    `model_keys` are dotted prefixes of the config, such as "transformer": whatever decides what the parameters mean.
    """
    changed = diff(stored_config(workdir), from_json(to_json(config)))
    fatal = [line for line in changed if any(f"{line.split(':')[0]}.".startswith(f"{key}.") for key in model_keys)]
    if fatal:
        raise ConfigError(
            f"{workdir} holds a run of another config, so it was left as it is; choose another workdir, or undo:\n  "
            + "\n  ".join(fatal)
        )
    for line in changed:
        logging.warning("resuming with a changed config: %s", line)


def restore_parts(
    workdir: epath.PathLike, step: int | None = None
) -> tuple[dict[str, Tree], dict[str, Tree], Tree, ConfigDict, int]:
    """(params, ema, extra, config, step) as trees of numpy arrays, from the latest (or the given) checkpoint.

    Needs neither the task nor the optimiser nor the devices of the run. `CheckpointError` if there is no such
    checkpoint or it cannot be read.
    """
    for entry in _scan(workdir)[1]:
        logging.warning("ignoring half-written checkpoint %s", entry)
    step = _chosen(workdir, step)
    path = epath.Path(workdir).resolve() / FOLDER / str(step) / "weights"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, _reading(path.parent):
        entries = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), entries)
        weights = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return weights["params"], weights["ema"], weights["extra"], stored_config(workdir, step), step


def _stored_shapes(path: epath.Path) -> dict[str, tuple[int, ...]]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return _shapes(checkpointer.metadata(path).item_metadata.tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path → shape of every array, as it is stored: a random key as the numbers it is made of."""
    return {path_name(path): _stored_shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _stored_shape(leaf: Any) -> tuple[int, ...]:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return tuple(jax.eval_shape(jax.random.key_data, leaf).shape if is_key else leaf.shape)


def _check_same_arrays(folder: epath.Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """`ConfigError` naming some arrays that the checkpoint has and this run does not, or the other way round."""
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
def _reading(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged file shows as almost any type; never as a silent fresh start
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {error}\nRemove that folder to go back to the checkpoint before it."
        ) from error


def _chosen(workdir: epath.PathLike, step: int | None) -> int:
    latest = latest_step(workdir)
    if latest is None:
        raise CheckpointError(f"{workdir} holds no checkpoint (looked in {epath.Path(workdir) / FOLDER})")
    if step is not None and not _is_whole(epath.Path(workdir) / FOLDER / str(step)):
        raise CheckpointError(f"{workdir} holds no checkpoint of step {step}; its latest is {latest}")
    return latest if step is None else step


def _scan(workdir: epath.PathLike) -> tuple[list[int], list[epath.Path]]:
    """The steps that have a whole checkpoint, and the folders of checkpoints that are none."""
    directory = epath.Path(workdir) / FOLDER
    entries = [entry for entry in directory.iterdir() if entry.is_dir()] if directory.is_dir() else []
    whole = [entry for entry in entries if entry.name.isdigit() and _is_whole(entry)]
    return [int(entry.name) for entry in whole], [entry for entry in entries if entry not in whole]


def _is_whole(path: epath.Path) -> bool:
    # Orbax writes this file into each item and then into the checkpoint, after everything else.
    return all((path / item / "commit_success.txt").exists() for item in (*ITEMS, "."))
