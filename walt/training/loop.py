"""The training loop. Both stages, and everything later, train through it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence

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
from walt.training.checkpoint import Checkpoints, Clock, check_config, check_folder, latest_step, recover
from walt.training.config import TrainingConfig
from walt.training.meter import Meter, NonFiniteError
from walt.training.metrics import MetricLog, read_metrics
from walt.training.optimizer import make_schedule
from walt.training.profile import Profiler
from walt.training.signals import Interrupted, StopSignal
from walt.training.state import Initial, TrainState, abstract_state, create_state
from walt.training.step import make_train_step
from walt.training.task import Batch, Evaluator, Loader, Task

__all__ = ["Initial", "Interrupted", "NonFiniteError", "TrainState", "TrainingConfig", "train"]


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

    A run that has finished returns its state at once. Raises `NonFiniteError` naming the step, `CheckpointError`,
    `ConfigError`; `Interrupted` (a `SystemExit`) after Ctrl-C, with everything saved.
    """
    profiler = Profiler(workdir, profile)
    mesh = make_mesh(config.mesh, devices)
    _check_mesh(mesh, divides)
    step = _check_workdir(workdir, config, resolved_config, model_keys)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        batches: Iterator[Batch] = loader.batches(step)
        stack.callback(getattr(batches, "close", lambda: None))  # a generator's workers end with the run
        if step < config.num_steps:
            # Before anything is written: a mistake in the data must not leave a run that its correction does not fit.
            batches = _checked(batches, task, config, mesh)
        recover(workdir)
        checkpoints = stack.enter_context(Checkpoints(workdir, config.keep_checkpoints))
        if checkpoints.latest is None:
            initial = on_start() if on_start else Initial()
            state, clock = create_state(task, config, mesh, axes, initial), Clock()
        else:
            state, clock = checkpoints.restore(abstract_state(task, config, mesh, axes))
        log = stack.enter_context(contextlib.closing(MetricLog(workdir, step)))
        if clock.finished and step == config.num_steps:
            _evaluate(evaluators, state, step, config, log)
            tqdm.write(f"{workdir} has finished its {step} steps; nothing to do")
            return state
        stop = stack.enter_context(StopSignal())
        stack.enter_context(contextlib.closing(profiler))
        meter = stack.enter_context(contextlib.closing(Meter(log, clock, step, config, task.row_cost())))
        stack.enter_context(failing_together())  # last, so that it is left first

        run, learning_rate = None, make_schedule(config.optimizer, config.num_steps)
        while True:
            # `state` is the result of `step` updates. It is saved before it is evaluated, and both before more data is
            # drawn: whatever happens next, the checkpoint at `step` and the batches from `step` on give the same run.
            last, stopping = step == config.num_steps, _stopping(stop, step, config)
            if last or stopping or step % config.checkpoint_every == 0:
                meter.flush()  # a loss that is not finite stops the run here: what is saved is good
                with meter.paused():
                    if last and on_finish:
                        if step != checkpoints.latest:  # whatever happens in `on_finish`, the training is kept
                            checkpoints.save(state, step, meter.clock(finished=False), resolved_config)
                        state = on_finish(state)
                    if last or step != checkpoints.latest:
                        checkpoints.save(state, step, meter.clock(finished=last), resolved_config, wait=step == 0)
            if _due(evaluators, step, config) and (last or not stopping):
                meter.flush()
                with meter.paused():
                    _evaluate(evaluators, state, step, config, log)
            if last or stopping:
                checkpoints.wait()
            if stopping or (last and stop.received):  # a signal that came while the last state was being finished
                tqdm.write(f"stopped at step {step}, which is saved; the same command goes on from here")
                raise Interrupted(stop.received or signal.SIGTERM)
            if last:
                tqdm.write(f"trained {workdir} to step {step}, which is saved")
                return state

            rows = _draw(batches, stop)
            if rows is None:
                continue
            if run is None:
                with meter.paused():
                    step_function = make_train_step(task, config, mesh, axes)
                    run = step_function.lower(state, put_batch(rows, mesh), learning_rate(step)).compile()
            profiler.at(step)
            state, metrics = run(state, put_batch(rows, mesh), learning_rate(step))
            step += 1
            meter.add(step, count_rows(rows, mesh), metrics)


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


def _stopping(stop: StopSignal, step: int, config: TrainingConfig) -> bool:
    # Several hosts have to agree, which costs a collective: ask at log steps only.
    processes = jax.process_count()
    return (processes == 1 or step % config.log_every == 0) and stop.agreed(processes)


def _draw(batches: Iterator[Batch], stop: StopSignal) -> Batch | None:
    """The next batch; None if there is none because Ctrl-C, which reaches the loader's workers too, ended them."""
    try:
        return next(batches)
    except Exception:
        if stop.received is None or jax.process_count() > 1:
            raise
        return None


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
