"""The training loop. Both stages, and everything later, train through it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from walt.parallel.mesh import count_rows, make_mesh, put_batch
from walt.parallel.processes import failing_together
from walt.parallel.rules import ParameterAxes
from walt.training.anomalies import Judge, LossSpikeError, NonFiniteError, SkippedBatches
from walt.training.checkpoint import Checkpoints, Clock, RollBack, stored_clock
from walt.training.checks import check_batch, check_best, check_mesh, check_same_everywhere, check_workdir
from walt.training.claim import claimed
from walt.training.config import TrainingConfig
from walt.training.folder import recover
from walt.training.meter import Meter
from walt.training.metrics import MetricLog
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
    check_mesh(mesh, divides)
    check_best(config, evaluators)
    check_workdir(workdir, config, resolved_config, model_keys)  # before anything is written there
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(watching(ends=False))
        stack.enter_context(claimed(workdir))
        stack.enter_context(jax.set_mesh(mesh))
        profiler = stack.enter_context(contextlib.closing(Profiler(workdir, profile)))
        run = _Run(
            task, loader, config, workdir, resolved_config, model_keys, evaluators, on_start, on_finish, axes, mesh, stop, profiler
        )  # fmt: skip
        while True:
            try:
                return run.go_on()
            except RollBack:  # to the latest checkpoint, as if the run had been started again
                run.rolled_back = True


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
    rolled_back: bool = False

    def go_on(self) -> TrainState:
        """Trains from the latest checkpoint, or from nothing, to the end."""
        config, workdir, step = self.config, self.workdir, self._step()
        with contextlib.ExitStack() as stack:
            watchdog = stack.enter_context(
                Watchdog(workdir, config.watchdog, step)
            )  # first, for storage may hang at once
            batches = stack.enter_context(_Batches(self.loader, self.stop, step))
            if step < config.num_steps:
                # Before anything is written: a mistake in the data must not leave a run that its correction does not fit.
                check_batch(batches.first(), self.task, config, self.mesh)
            finished = step == config.num_steps and stored_clock(workdir).finished
            if not finished:
                watchdog.start_heartbeat()
            recover(workdir)
            log: MetricLog  # opened once a checkpoint has been read, for it removes the lines of later steps
            metric = lambda at: log.value(at, config.saving.best_metric)  # noqa: E731
            checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints, config.saving, metric))
            state, clock = self._state(checkpoints)
            log = stack.enter_context(contextlib.closing(MetricLog(workdir, step)))
            if finished:
                _evaluate(self.evaluators, state, step, config, log)
                tqdm.write(f"{workdir} has finished its {step} steps; a larger training.num_steps would go on")
                return state
            skipped = SkippedBatches(workdir, getattr(self.loader, "example_ids", None))
            judge = Judge(config, clock, skipped)
            counts = functools.partial(_counts, self.loader, skipped, checkpoints)
            meter = Meter(log, clock, step, config, self.task.row_cost(), judge, watchdog, counts)
            stack.enter_context(contextlib.closing(meter))
            stack.enter_context(failing_together())  # last, so that it is left first
            course = _Course(self, step, state, batches, checkpoints, log, skipped, judge, watchdog, meter)
            stack.enter_context(self.stop.when(lambda: not course.training))
            try:
                return course.to_the_end()
            except RollBack:
                checkpoints.wait()  # here, where a signal does not cut the save short
                raise

    def _step(self) -> int:
        """The step to go on from, and a line that says so."""
        step, changed = check_workdir(self.workdir, self.config, self.resolved_config, self.model_keys)
        check_same_everywhere(self.workdir, step, self.config, self.resolved_config, self.model_keys)
        if step is None:
            return 0
        if self.rolled_back:
            tqdm.write(f"rolled back to step {step}")
            return step
        for line in changed:
            logging.warning("resuming with a changed config: %s", line)
        tqdm.write(f"resuming {self.workdir} from step {step}")
        return step

    def _state(self, checkpoints: Checkpoints) -> tuple[TrainState, Clock]:
        """What the latest checkpoint holds, or what a new run begins with."""
        if checkpoints.latest is not None:
            return checkpoints.restore(abstract_state(self.task, self.config, self.mesh, self.axes))
        initial = self.on_start() if self.on_start else Initial()
        return create_state(self.task, self.config, self.mesh, self.axes, initial), Clock()


@dataclasses.dataclass
class _Course:
    """The way of a run from where it was taken up. `state` is the result of `step` updates; once `training`, there is something to lose."""

    run: _Run
    step: int
    state: TrainState
    batches: _Batches
    checkpoints: Checkpoints
    log: MetricLog
    skipped: SkippedBatches
    judge: Judge
    watchdog: Watchdog
    meter: Meter
    training: bool = False

    def to_the_end(self) -> TrainState:
        """A state is saved before it is evaluated for long, and both before more data is drawn: whatever happens next, the checkpoint at `step`
        and the batches from `step` on give the same run.
        """
        config, stop, evaluators = self.run.config, self.run.stop, self.run.evaluators
        while True:
            last, stopping = self.step == config.num_steps, stop.agreed(self.step)
            self.checkpoints.check()
            takes_long = any(evaluator.takes_long for evaluator in _due(evaluators, self.step, config))
            if last or stopping or takes_long or self.step % config.checkpoint_every == 0:
                self.save(last)
            if last or not stopping:
                self.evaluate()
            if last or stopping:
                return self.end(last, stopping)
            rows = self.draw()
            if rows is not None:
                self.update(rows)

    def save(self, last: bool) -> None:
        """Saves the state, in the end after it has been finished."""
        run, step, checkpoints = self.run, self.step, self.checkpoints
        self.meter.flush()  # numbers that are wrong stop the run here: what is saved is good
        with self.meter.paused("saving"), run.stop.when(lambda: False):
            if last and run.on_finish:
                if step != checkpoints.latest:  # whatever happens in `on_finish`, the training is kept
                    checkpoints.save(self.state, step, self.meter.clock(finished=False), run.resolved_config, wait=True)
                with self.watchdog.during("finishing"), run.stop.when(lambda: True):
                    self.state = run.on_finish(self.state)
            if last or step != checkpoints.latest:
                clock = self.meter.clock(finished=last)
                checkpoints.save(self.state, step, clock, run.resolved_config, wait=step == 0)

    def evaluate(self) -> None:
        """Lets the evaluators look that are due."""
        run = self.run
        if _due(run.evaluators, self.step, run.config):
            self.meter.flush()
            with self.meter.paused("evaluating"), run.stop.when(lambda: self.checkpoints.hold(self.step)):
                _evaluate(run.evaluators, self.state, self.step, run.config, self.log)

    def end(self, last: bool, stopping: bool) -> TrainState:
        """Waits until the state is on disk; raises `Interrupted` where the run was told to end."""
        self.checkpoints.finish(self.step)
        if stopping or self.run.stop.received:  # a signal that came while the last state was being finished
            tqdm.write(f"stopped at step {self.step}, which is saved; the same command goes on from here")
            raise Interrupted(self.run.stop.received)
        tqdm.write(f"trained {self.run.workdir} to step {self.step}, which is saved")
        return self.state

    def draw(self) -> Batch | None:
        """This process's rows of the next batch; None if the run is to stop here."""
        with self.watchdog.during(LOADING):
            return self.batches.draw(self.step)

    def update(self, rows: Batch) -> None:
        """One step on a batch, or past it if it is left out."""
        run = self.run
        metrics: Mapping[str, Any] = {}
        if self.step in self.skipped.steps:
            self.state = dataclasses.replace(self.state, step=self.state.step + 1)
        else:
            arguments = (put_batch(rows, run.mesh), *self.scalars())
            if run.program is None:
                with self.meter.paused("compiling"):
                    function = make_train_step(run.task, run.config, run.mesh, run.axes)
                    run.program = function.lower(self.state, *arguments).compile()
            run.profiler.at(self.step)
            metrics = self.apply(arguments)
        self.step += 1
        self.meter.add(self.step, count_rows(rows, run.mesh), metrics)
        if not self.training:  # before the first update is there, nothing would be lost
            jax.block_until_ready(self.state)
            self.training = True
            self.watchdog.training()

    def scalars(self) -> list[float]:
        """What changes from step to step."""
        config = self.run.config
        learning_rate = make_schedule(config.optimizer, config.num_steps)(self.step)
        return [learning_rate, *([self.judge.loss_limit(self.step + 1)] if config.anomalies.spike == "skip" else [])]

    def apply(self, arguments: tuple[Any, ...]) -> Mapping[str, Any]:
        """The compiled step; where the config wants it, twice."""
        run, again = self.run, None
        every = run.config.anomalies.repeat_every
        if every is not None and (self.step + 1) % every == 0:
            again, _ = run.program(copied(self.state), *arguments)
        self.state, metrics = run.program(self.state, *arguments)
        if again is not None:
            require_same(self.step + 1, self.state, again)
        return metrics


class _Batches:
    """The batches of a loader from `step` on. Leaving it ends the loader's workers."""

    def __init__(self, loader: Loader, stop: StopSignal, step: int):
        self._loader, self._stop = loader, stop
        self._drawn: Batch | None = None
        self._iterator: Iterator[Batch] = loader.batches(step)

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, *error: object) -> None:
        getattr(self._iterator, "close", lambda: None)()

    def first(self) -> Batch:
        """The first batch, which will be drawn all the same."""
        self._drawn = next(self._iterator)
        return self._drawn

    def draw(self, step: int) -> Batch | None:
        """The next batch, which is that of `step`. A signal may be meant for all processes of this host, and end the loader's workers:
        then a run of its own draws nothing more (None), and one of a job goes on with new ones to where all stop.
        """
        if self._drawn is not None:
            drawn, self._drawn = self._drawn, None
            return drawn
        try:
            return next(self._iterator)
        except Exception:
            if not self._stop.wait(1.0):
                raise
        if jax.process_count() == 1:
            return None
        self.__exit__()
        self._iterator = self._loader.batches(step)
        return next(self._iterator)


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
            logged = {f"{evaluator.name}/{name}": value for name, value in found.items()}
            log.write(step, logged)
            best = config.saving.best_metric
            if config.saving.keep_best and best.startswith(f"{evaluator.name}/") and best not in logged:
                logging.warning(
                    "no checkpoint is kept for its %s, which is not measured; there is %s", best, ", ".join(logged)
                )


def _counts(loader: Loader, skipped: SkippedBatches, checkpoints: Checkpoints, step: int) -> dict[str, float]:
    """What the loader has counted until `step`, and what else went wrong, if anything has."""
    left_out = sum(at < step for at in skipped.steps)
    wrong = {"skipped_batches": float(left_out), "failed_saves": float(checkpoints.failed)}
    return {**getattr(loader, "counts", {}), **{name: count for name, count in wrong.items() if count}}
