"""The training loop. Both stages, and everything later, train through it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from walt.config import ConfigError
from walt.parallel.mesh import batch_shards, count_rows, make_mesh, put_batch
from walt.parallel.processes import failing_together
from walt.parallel.rules import ParameterAxes
from walt.training.anomalies import Judge, LossSpikeError, NonFiniteError, RollBack, SkippedBatches
from walt.training.checkpoint import Checkpoints, Clock, check_config
from walt.training.config import TrainingConfig
from walt.training.folder import check_folder, latest_step, recover
from walt.training.meter import Meter
from walt.training.metrics import MetricLog, read_metrics
from walt.training.optimizer import make_schedule
from walt.training.preemption import Interrupted, StopSignal, watching
from walt.training.profile import Profiler
from walt.training.repetition import copied, require_same
from walt.training.state import Initial, TrainState, abstract_state, create_state
from walt.training.step import make_train_step
from walt.training.task import Batch, Evaluator, Loader, Task
from walt.training.watchdog import LOADING, Watchdog

__all__ = ["Initial", "Interrupted", "LossSpikeError", "NonFiniteError", "TrainState", "TrainingConfig", "train"]


def train(
    task: Task,
    loader: Loader,
    config: TrainingConfig,
    workdir: epath.PathLike,
    *,
    resolved_config: ConfigDict,
    model_keys: Sequence[str] = (),
    evaluators: Sequence[Evaluator] = (),
    on_start: Callable[[], Initial] | None = None,
    on_finish: Callable[[TrainState], TrainState] | None = None,
    axes: ParameterAxes = (),
    divides: Collection[str] = (),
    profile: range = range(0),
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Train `task` to step `config.num_steps` and return the final state; goes on from the latest checkpoint in
    `workdir` if there is one.

    Args:
        resolved_config: the whole experiment, stored with every checkpoint.
        model_keys: dotted prefixes of `resolved_config` that may not change between a run and its resumption
            (`ConfigError` with the differences).
        on_start: called once the work directory is known to be free, and not when a run goes on: the values to start from.
        on_finish: applied once to the last state, before it is saved; keeps structure, shapes and dtypes.
        axes: where parameters lie on the mesh, see `walt.parallel.rules`.
        divides: those of the mesh axes `context` and `tensor` along which the model divides its work.
        profile: steps to trace.
        devices: those to train on; all of them by default.

    A run that has finished returns its state at once. Raises `NonFiniteError` and `LossSpikeError` naming the step, `CheckpointError`,
    `ConfigError`, `SilentCorruptionError`; `Interrupted` (a `SystemExit`) after SIGTERM or Ctrl-C, with everything saved.
    """
    mesh = make_mesh(config.mesh, devices)
    _check_mesh(mesh, divides)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(watching(ends=False))
        stack.enter_context(jax.set_mesh(mesh))
        profiler = stack.enter_context(contextlib.closing(Profiler(workdir, profile)))
        run = _Run(
            task,
            loader,
            config,
            workdir,
            resolved_config,
            model_keys,
            evaluators,
            on_start,
            on_finish,
            axes,
            mesh,
            stop,
            profiler,
        )
        while True:
            try:
                return run.go_on()
            except RollBack:  # to the latest checkpoint, as if the run had been started again
                continue


@dataclasses.dataclass
class _Run:
    """What `train` was given, and what it has compiled."""

    task: Task
    loader: Loader
    config: TrainingConfig
    workdir: epath.PathLike
    resolved_config: ConfigDict
    model_keys: Sequence[str]
    evaluators: Sequence[Evaluator]
    on_start: Callable[[], Initial] | None
    on_finish: Callable[[TrainState], TrainState] | None
    axes: ParameterAxes
    mesh: Mesh
    stop: StopSignal
    profiler: Profiler
    program: Any = None

    def go_on(self) -> TrainState:
        """Trains from the latest checkpoint, or from nothing, to the end."""
        config, stop, workdir = self.config, self.stop, self.workdir
        step = _check_workdir(workdir, config, self.resolved_config, self.model_keys)
        with contextlib.ExitStack() as stack:
            batches: Iterator[Batch] = self.loader.batches(step)
            stack.callback(lambda: _close(batches))  # a generator's workers end with the run
            if step < config.num_steps:
                # Before anything is written: a mistake in the data must not leave a run that its correction does not fit.
                batches = _checked(batches, self.task, config, self.mesh)
            recover(workdir)
            checkpoints = stack.enter_context(
                Checkpoints(
                    workdir, config.keep_checkpoints, config.saving, lambda at: log.value(at, config.saving.best_metric)
                )
            )
            if checkpoints.latest is None:
                initial = self.on_start() if self.on_start else Initial()
                state, clock = create_state(self.task, config, self.mesh, self.axes, initial), Clock()
            else:
                state, clock = checkpoints.restore(abstract_state(self.task, config, self.mesh, self.axes))
            log = stack.enter_context(contextlib.closing(MetricLog(workdir, step)))
            if clock.finished and step == config.num_steps:
                _evaluate(self.evaluators, state, step, config, log)
                tqdm.write(f"{workdir} has finished its {step} steps; nothing to do")
                return state
            skipped = SkippedBatches(workdir, getattr(self.loader, "example_ids", None))
            judge = Judge(config, clock, skipped)
            watchdog = stack.enter_context(Watchdog(workdir, config.watchdog, step))
            counts = lambda at: _counts(self.loader, len([n for n in skipped.steps if n < at]), checkpoints)  # noqa: E731
            meter = stack.enter_context(
                contextlib.closing(Meter(log, clock, step, config, self.task.row_cost(), judge, watchdog, counts))
            )
            stack.enter_context(failing_together())  # last, so that it is left first

            learning_rate, training = make_schedule(config.optimizer, config.num_steps), False
            while True:
                # `state` is the result of `step` updates. It is saved before it is evaluated, and both before more data is
                # drawn: whatever happens next, the checkpoint at `step` and the batches from `step` on give the same run.
                last, stopping = step == config.num_steps, stop.agreed(step)
                checkpoints.check()
                if last or stopping or step % config.checkpoint_every == 0:
                    meter.flush()  # numbers that are wrong stop the run here: what is saved is good
                    with meter.paused("saving"), stop.when(lambda: False):
                        if last and self.on_finish:
                            if step != checkpoints.latest:  # whatever happens in `on_finish`, the training is kept
                                clock = meter.clock(finished=False)
                                checkpoints.save(state, step, clock, self.resolved_config, wait=True)
                            with watchdog.during("finishing"), stop.when(lambda: True):
                                state = self.on_finish(state)
                        if last or step != checkpoints.latest:
                            clock = meter.clock(finished=last)
                            checkpoints.save(state, step, clock, self.resolved_config, wait=step == 0)
                if _due(self.evaluators, step, config) and (last or not stopping):
                    meter.flush()
                    with meter.paused("evaluating"), stop.when(lambda: checkpoints.hold(step)):  # noqa: B023
                        _evaluate(self.evaluators, state, step, config, log)
                if last or stopping:
                    checkpoints.finish(step)
                if stopping or (last and stop.received):  # a signal that came while the last state was being finished
                    tqdm.write(f"stopped at step {step}, which is saved; the same command goes on from here")
                    raise Interrupted(stop.received)
                if last:
                    tqdm.write(f"trained {workdir} to step {step}, which is saved")
                    return state

                with watchdog.during(LOADING):
                    rows, batches = self._draw(batches, step)
                if rows is None:
                    continue
                metrics: Mapping[str, Any] = {}
                if step in skipped.steps:
                    state = dataclasses.replace(state, step=state.step + 1)
                else:
                    batch, scalars = put_batch(rows, self.mesh), [learning_rate(step)]
                    if config.anomalies.spike == "skip":
                        scalars.append(judge.loss_limit(step + 1))
                    if self.program is None:
                        with meter.paused("compiling"):
                            function = make_train_step(self.task, config, self.mesh, self.axes)
                            self.program = function.lower(state, batch, *scalars).compile()
                    self.profiler.at(step)
                    state, metrics = self._update(step, state, batch, scalars)
                step += 1
                meter.add(step, count_rows(rows, self.mesh), metrics)
                if not training:  # before the first update is there, nothing would be lost
                    jax.block_until_ready(state)
                    stack.enter_context(stop.when(lambda: False))
                    watchdog.training()
                    training = True

    def _update(
        self, step: int, state: TrainState, batch: Batch, scalars: list[Any]
    ) -> tuple[TrainState, Mapping[str, Any]]:
        """One step; where the config wants it, twice."""
        every = self.config.anomalies.repeat_every
        if every is None or (step + 1) % every:
            return self.program(state, batch, *scalars)
        again, _ = self.program(copied(state), batch, *scalars)
        state, metrics = self.program(state, batch, *scalars)
        require_same(step + 1, state, again)
        return state, metrics

    def _draw(self, batches: Iterator[Batch], step: int) -> tuple[Batch | None, Iterator[Batch]]:
        """The next batch, and where those after it come from. A signal may be meant for all processes of this host, and end the
        loader's workers: then a run of its own draws nothing more, and one of a job goes on with new ones to where all stop.
        """
        try:
            return next(batches), batches
        except Exception:
            if not self.stop.wait(1.0):
                raise
        if jax.process_count() == 1:
            return None, batches
        _close(batches)
        batches = self.loader.batches(step)
        return next(batches), batches


def _check_workdir(
    workdir: epath.PathLike, config: TrainingConfig, resolved_config: ConfigDict, model_keys: Sequence[str]
) -> int:
    """The step to go on from. Refuses a work directory that holds something else, before anything in it is touched."""
    check_folder(workdir)
    step = latest_step(workdir)
    if step is None:
        if read_metrics(workdir):
            raise ConfigError(
                f"{workdir} holds the metrics of a run but no whole checkpoint to resume from: "
                "move it away or choose another workdir"
            )
        return 0
    changed = check_config(workdir, resolved_config, model_keys)
    if step > config.num_steps:
        raise ConfigError(
            f"{workdir} is at step {step} already, but num_steps is {config.num_steps}: raise it or choose another workdir"
        )
    for line in changed:
        logging.warning("resuming with a changed config: %s", line)
    tqdm.write(f"resuming {workdir} from step {step}")
    return step


def _check_mesh(mesh: Mesh, divides: Collection[str]) -> None:
    """Refuse mesh axes along which nothing would be divided: their devices would all do the same work."""
    for axis in ("context", "tensor"):
        if mesh.shape[axis] > 1 and axis not in divides:
            raise ConfigError(
                f"mesh.{axis} is {mesh.shape[axis]}, but nothing of this model is divided along it; set it to 1"
            )


def _due(evaluators: Sequence[Evaluator], step: int, config: TrainingConfig) -> list[Evaluator]:
    return [e for e in evaluators if step > 0 and (step % e.every == 0 or step == config.num_steps)]


def _evaluate(
    evaluators: Sequence[Evaluator], state: TrainState, step: int, config: TrainingConfig, log: MetricLog
) -> None:
    """Run the evaluators that are due at `step`, except those whose metrics an earlier start has logged already."""
    for evaluator in _due(evaluators, step, config):
        if not log.has(step, f"{evaluator.name}/"):
            began = time.perf_counter()
            found = evaluator(state, step)
            # A number in any case: videos alone would leave no trace in the log, and be made again at every start.
            found = {**found, "seconds": time.perf_counter() - began}
            log.write(step, {f"{evaluator.name}/{name}": value for name, value in found.items()})


def _counts(loader: Loader, skipped: int, checkpoints: Checkpoints) -> dict[str, float]:
    """What the loader has counted, and what else went wrong, if anything has."""
    wrong = {"skipped_batches": float(skipped), "failed_saves": float(checkpoints.failed)}
    return {**getattr(loader, "counts", {}), **{name: count for name, count in wrong.items() if count}}


def _close(batches: Iterator[Batch]) -> None:
    getattr(batches, "close", lambda: None)()


def _checked(batches: Iterator[Batch], task: Task, config: TrainingConfig, mesh: Mesh) -> Iterator[Batch]:
    """The same batches, of which the first is drawn and found to fit."""
    first = next(batches)
    _check_batch(first, task, config, mesh)
    return itertools.chain([first], batches)


def _check_batch(rows: Batch, task: Task, config: TrainingConfig, mesh: Mesh) -> None:
    """`ConfigError` naming the batch entry that the task cannot use, or the batch size that does not divide."""
    for name, spec in task.batch_spec().items():
        if name not in rows:
            raise ConfigError(
                f"the loader's batches have no entry {name!r}, which the task needs; they have {', '.join(sorted(rows))}"
            )
        found = np.asarray(rows[name])
        if found.shape[1:] != spec.shape or found.dtype != spec.dtype:
            raise ConfigError(
                f"batch entry {name!r} has rows of shape {found.shape[1:]} and dtype {found.dtype}; "
                f"the task expects {spec.shape} and {spec.dtype}"
            )
    size, parts = count_rows(rows, mesh), config.accumulation * batch_shards(mesh)
    if size % parts:
        raise ConfigError(
            f"a batch of {size} rows does not divide into accumulation={config.accumulation} parts "
            f"on {batch_shards(mesh)} devices: make the batch size a multiple of {parts}"
        )
    logging.info("training on %d devices, batches of %d rows", mesh.size, size)
