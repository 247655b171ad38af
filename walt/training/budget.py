"""How many steps fit into a given time, by trying a few."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import jax

from walt.parallel.mesh import make_mesh, put_batch
from walt.parallel.rules import ParameterAxes
from walt.training.config import TrainingConfig
from walt.training.state import create_state
from walt.training.step import make_train_step
from walt.training.task import Loader, Task


def steps_for_budget(
    task: Task,
    loader: Loader,
    config: TrainingConfig,
    seconds: float,
    *,
    trial_steps: int = 5,
    axes: ParameterAxes = (),
    devices: Sequence[jax.Device] | None = None,
) -> int:
    """The number of steps (at least 1) that take `seconds` on this machine: one compilation, then the median of
    `trial_steps` steps, data loading included.

    `seconds` is for steps alone: take off what compiling, evaluation and checkpoints of the real run cost. With a
    compilation cache the run itself does not compile its step again, whatever its length. Writes nothing anywhere.
    """
    mesh = make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        state, batches = create_state(task, config, mesh, axes), loader.batches(0)
        step, scalars = make_train_step(task, config, mesh, axes), [config.optimizer.learning_rate]
        scalars += [math.inf] if config.anomalies.spike == "skip" else []  # no loss is above the limit
        run = step.lower(state, put_batch(next(batches), mesh), *scalars).compile()
        times = []
        for _ in range(trial_steps + 1):
            began = time.perf_counter()
            state, metrics = run(state, put_batch(next(batches), mesh), *scalars)
            jax.block_until_ready((state, metrics))
            times.append(time.perf_counter() - began)
    return max(1, int(seconds / statistics.median(times[1:])))
