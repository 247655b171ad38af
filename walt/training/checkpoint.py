"""Checkpoints: the whole state, the metrics clock and the resolved config, in `workdir/checkpoints/<step>/`.

The position in the data needs no entry of its own: it is the step. Saving goes on in the background while training
does; a save that fails, fails the run. A checkpoint counts once it is whole; what an interrupted save left behind is
cleaned away, with a line that says so. The config is JSON, arrays are Orbax's: nothing here is code.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from walt.config import ConfigError, from_json, to_json
from walt.parallel.rules import path_name
from walt.training import checksums
from walt.training.config import SavingConfig
from walt.training.folder import (
    FOLDER,
    ITEMS,
    REPLACED,
    CheckpointError,
    check_newest,
    is_whole,
    latest_step,
    put_back,
    reading,
    remove_unsaved,
    scan,
)
from walt.training.keeping import keeping
from walt.training.state import TrainState
from walt.training.task import Tree

CHUNK_BYTES = 2**24  # a process that wants a part of an array reads the chunks that the part lies in
SAVE_SECONDS = 3600  # within which the processes of a job must be done with a save; the first one reads it once more, for the checksums


@dataclass(frozen=True)
class Clock:
    """The state of the metrics: `seconds` trained so far, and the sums since the last line of the log, so that a
    resumed run writes the same lines; `losses` are the last ones, by step, where spikes are looked for; `checksums` says that the
    checkpoint was given some.
    """

    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0
    window_skipped: int = 0
    skipped_in_a_row: int = 0
    finished: bool = False
    losses: list[list[float]] = field(default_factory=list)
    checksums: bool = False


class RollBack(BaseException):
    """To be answered by going on from the last checkpoint. No `Exception`, for nothing has failed: the other processes of the job, which
    have the same numbers, do the same.
    """


class Checkpoints:
    """The checkpoints of one work directory, for one training run. Use as a context manager: leaving it waits for the
    last save, and raises what that met, unless the run has failed already.

    Args:
      keep: how many of the last ones stay.
      saving: which others do, and what a full disk means.
      metric: what `saving.best_metric` was at a step, None if it was not measured.

    Attributes:
      latest: the step of the latest one, once it is whole.
      failed: how many could not be written for want of space.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        keep: int,
        saving: SavingConfig = SavingConfig(),  # noqa: B008
        metric: Callable[[int], float | None] = lambda step: None,
    ):
        self.directory = epath.Path(workdir).resolve() / FOLDER
        self.latest, self.failed = latest_step(workdir), 0
        self._workdir, self._saved = workdir, self.latest
        self._goes_on = saving.disk_full == "go_on" and jax.process_count() == 1
        self._policy = keeping(keep, saving, metric)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            async_options=ocp.options.AsyncOptions(timeout_secs=SAVE_SECONDS, post_finalization_callback=self._seal),
        )
        return ocp.CheckpointManager(self.directory, item_names=ITEMS, options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None or isinstance(error, RollBack):
                self.wait()
        finally:
            with contextlib.suppress(Exception):  # it says once more what went wrong with the last save
                self._manager.close()

    def save(self, state: TrainState, step: int, clock: Clock, config: ConfigDict, *, wait: bool = False) -> None:
        """Save in the background (or before returning, with `wait`); raises what an earlier save in the background met.

        A checkpoint of the same step is replaced: it is removed only after the new one is whole.
        """
        self.wait()
        weights = {"params": state.params, "ema": state.ema, "extra": state.extra}
        training = {"step": state.step, "opt": state.opt, "key": state.key}
        arguments = ocp.args.Composite(
            weights=ocp.args.StandardSave(weights, _in_chunks(weights)),
            training=ocp.args.StandardSave(training, _in_chunks(training)),
            config=ocp.args.JsonSave(json.loads(to_json(config))),
            clock=ocp.args.JsonSave({**vars(clock), "checksums": True}),
        )
        with self._replacing(step) if step == self.latest else contextlib.nullcontext():
            self._saved = step
            self._guarded(lambda: self._save(step, arguments))
            if wait:
                self.finish(step)

    @contextlib.contextmanager
    def _replacing(self, step: int) -> Iterator[None]:
        """Puts the checkpoint of `step` aside while another one is saved in its place. Where that one is not whole in the end, it comes back,
        and the `CheckpointError` says why, whatever `saving.disk_full` is: what is replaced is the end of a run.
        """
        folder, replaced = self.directory / str(step), self.directory / f"{step}{REPLACED}"
        if jax.process_index() == 0:
            folder.rename(replaced)
        multihost_utils.sync_global_devices("replacing a checkpoint")
        self._manager.reload()
        try:
            yield
            self.wait()
        finally:
            if jax.process_index() == 0:
                done = is_whole(folder)
                replaced.rmtree() if done else put_back(replaced)
        if jax.process_index() == 0 and not done:
            raise self._out_of_space()

    def check(self) -> None:
        """Raise the error of a save that failed in the background."""
        self._guarded(self._manager.check_for_errors)

    def wait(self) -> None:
        """Until everything is on disk."""
        self._guarded(self._wait)

    def finish(self, step: int) -> None:
        """Waits as well, and raises `CheckpointError` if the checkpoint of `step` is not there: of a full disk that was put up with."""
        self.wait()
        if self.latest != step:
            raise self._out_of_space()

    def saving(self) -> bool:
        """Whether something is being saved."""
        return self._manager.is_saving_in_progress()

    def hold(self, step: int) -> bool:
        """Whether the latest checkpoint is that of `step`, and whole."""
        return not self.saving() and latest_step(self._workdir) == step

    def _save(self, step: int, arguments: ocp.args.Composite) -> None:
        if not self._manager.save(step, args=arguments, force=True):
            raise CheckpointError(f"checkpoint {self.directory / str(step)} was not written: a later one exists")

    def _wait(self) -> None:
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        self.latest = self._saved

    def _seal(self) -> None:
        """Called by Orbax in a thread of the first process when all files are there, before a checkpoint gets its mark."""
        unfinished = list(self.directory.glob(f"{self._saved}.orbax-checkpoint-tmp*"))
        checksums.write(unfinished[0] if unfinished else self.directory / str(self._saved), ITEMS)

    def _guarded(self, action: Callable[[], None]) -> None:
        """What goes wrong is a `CheckpointError`; a full disk, if the run goes on all the same, costs one checkpoint."""
        try:
            action()
        except CheckpointError:
            raise
        except Exception as error:  # whatever the background thread met
            if not (self._goes_on and is_disk_full(error)):
                failed = self._failed(error)
                if is_disk_full(error) and jax.process_count() == 1:
                    remove_unsaved(self._workdir)  # of no use, and in the way of others
                raise failed from error
            logging.error("%s; the run goes on, and tries again with the next one", self._failed(error))
            with contextlib.suppress(Exception):  # the same once more
                self._manager.close()
            remove_unsaved(self._workdir)  # room for the next attempt
            self.failed, self.latest = self.failed + 1, latest_step(self._workdir)
            self._saved, self._manager = self.latest, self._open()

    def _out_of_space(self) -> CheckpointError:
        return self._failed(OSError(f"no space left on device, after {self.failed} attempts"))

    def _failed(self, error: Exception) -> CheckpointError:
        cause, last = str(error).split(" [tensorstore_spec=")[0], latest_step(self._workdir)
        advice = "" if last is None else f"; the last good one is of step {last}"
        if is_disk_full(error):
            cause = f"the disk is full: {cause}"
            advice += ", from which the same command goes on once there is space"
        return CheckpointError(f"a checkpoint in {self.directory} could not be written: {cause}{advice}")

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
        with reading(folder):
            if not _verify(folder, ITEMS, jax.process_index(), jax.process_count()):
                logging.warning(
                    "checkpoint %s was written by an older version, without checksums: nothing was checked", folder
                )
            stored = {item: _stored_tree(folder / item) for item in wanted}
        _check_same_arrays(folder, stored, wanted)
        # Orbax wants the structure that it stored, down to containers without arrays; the names alone decide what is what.
        arguments = {item: ocp.args.StandardRestore(_arranged(wanted[item], stored[item])) for item in wanted}
        with reading(folder):
            restored = self._manager.restore(
                self.latest, args=ocp.args.Composite(**arguments, clock=ocp.args.JsonRestore())
            )
            clock = _clock(restored["clock"])
        values = {item: _arranged(restored[item], wanted[item]) for item in wanted}
        return TrainState(**values["weights"], **values["training"]), clock


def stored_config(workdir: epath.PathLike, step: int | None = None) -> ConfigDict:
    """The resolved config in the latest (or the given) checkpoint; `CheckpointError` if there is none."""
    _, folder = _chosen(workdir, step)
    with reading(folder):
        _verify(folder, ("config",))
        return from_json((folder / "config" / "metadata").read_text())


def stored_clock(workdir: epath.PathLike, step: int | None = None) -> Clock:
    """The clock in the latest (or the given) checkpoint; `CheckpointError` if there is none."""
    _, folder = _chosen(workdir, step)
    with reading(folder):
        _verify(folder, ("clock",))
        return _clock(json.loads((folder / "clock" / "metadata").read_text()))


def _verify(folder: epath.Path, items: Sequence[str], part: int = 0, parts: int = 1) -> bool:
    """`checksums.verify`, and `DamageError` if there were checksums once."""
    if checksums.verify(folder, items, part, parts):
        return True
    if _clock(json.loads((folder / "clock" / "metadata").read_text())).checksums:
        raise checksums.DamageError(f"{checksums.FILE} is missing")
    return False


def _clock(values: Any) -> Clock:
    """The clock that a checkpoint says; `ValueError` or `TypeError` if it is none."""
    clock = Clock(**values)
    for name, default in vars(Clock()).items():
        numbers = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(vars(clock)[name], numbers):
            raise ValueError(f"the clock's {name} cannot be {vars(clock)[name]!r}")
    if not all(isinstance(value, (int, float)) for value in clock.window.values()):
        raise ValueError("the clock's window holds something else than numbers")
    if not all(isinstance(pair, list) and [type(value) for value in pair] == [int, float] for pair in clock.losses):
        raise ValueError("the clock's losses are no steps with numbers")
    return clock


def restore_parts(
    workdir: epath.PathLike, step: int | None = None
) -> tuple[dict[str, Tree], dict[str, Tree], Tree, ConfigDict, int]:
    """(params, ema, extra, config, step) as trees of numpy arrays, from the latest (or the given) checkpoint.

    Needs neither the task nor the optimiser nor the devices of the run, which may go on meanwhile: if it removes the checkpoint, the one
    that is now the latest is read. `CheckpointError` if there is no such checkpoint or it cannot be read.
    """
    for entry in scan(workdir).unfinished:
        logging.warning("ignoring half-written checkpoint %s", entry)
    while True:
        chosen, folder = _chosen(workdir, step)
        try:
            weights, config = _weights(folder), stored_config(workdir, chosen)
        except CheckpointError as error:
            if chosen in scan(workdir).whole:
                raise
            if step is not None:
                raise CheckpointError(f"checkpoint {folder} was removed while it was read") from error
            continue
        return weights["params"], weights["ema"], weights["extra"], config, chosen


def _weights(folder: epath.Path) -> Any:
    """The weights of a checkpoint as numpy arrays, once their checksums are found right."""
    path = folder.resolve() / "weights"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, reading(folder):
        _verify(folder, ("weights", "config"))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _stored_tree(path))
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, as the system or TensorStore words it, is that of a full disk."""
    return "no space left on device" in str(error).lower() or "disk quota exceeded" in str(error).lower()


def _in_chunks(tree: Any) -> Any:
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)


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


def _chosen(workdir: epath.PathLike, step: int | None) -> tuple[int, epath.Path]:
    """The latest (or the given) step and the folder of its checkpoint; `CheckpointError` if there is none, or the latest is damaged."""
    if step is None:
        check_newest(workdir)
    whole = scan(workdir).whole
    if not whole:
        raise CheckpointError(f"{workdir} holds no checkpoint (looked in {epath.Path(workdir) / FOLDER})")
    chosen = max(whole) if step is None else step
    if chosen not in whole:
        raise CheckpointError(f"{workdir} holds no checkpoint of step {step}; its latest is {max(whole)}")
    return chosen, whole[chosen]
