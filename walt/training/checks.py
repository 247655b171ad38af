"""What is refused before work is wasted: work directories, meshes and batches that a run cannot use."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from walt.config import ConfigError
from walt.parallel.mesh import batch_shards, count_rows
from walt.training.checkpoint import check_config
from walt.training.config import TrainingConfig
from walt.training.folder import check_folder, latest_step
from walt.training.metrics import read_metrics
from walt.training.task import Batch, Task


def check_workdir(
    workdir: epath.PathLike, config: TrainingConfig, resolved_config: ConfigDict, model_keys: Sequence[str]
) -> tuple[int | None, list[str]]:
    """(The step to go on from, None for a new run; what of the config has changed.) Refuses a work directory that holds something else,
    before anything in it is touched.
    """
    check_folder(workdir)
    step = latest_step(workdir)
    if step is None:
        if read_metrics(workdir):
            raise ConfigError(
                f"{workdir} holds the metrics of a run but no whole checkpoint to resume from: "
                "move it away or choose another workdir"
            )
        return None, []
    changed = check_config(workdir, resolved_config, model_keys)
    if step > config.num_steps:
        raise ConfigError(
            f"{workdir} is at step {step} already, but num_steps is {config.num_steps}: raise it or choose another workdir"
        )
    return step, changed


def check_same_step(workdir: epath.PathLike, step: int | None) -> None:
    """Refuses to train if the processes of the job have found checkpoints of different steps: they would go on from different states."""
    found = np.asarray(multihost_utils.process_allgather(np.int32(-1 if step is None else step))).reshape(-1)
    if (found != found[0]).any():
        seen = ", ".join(
            f"process {index} that of step {at}" if at >= 0 else f"process {index} none"
            for index, at in enumerate(found)
        )
        raise ConfigError(
            f"the processes of this job see different checkpoints in {workdir} ({seen}): it must be one folder that all of them share"
        )


def check_mesh(mesh: Mesh, divides: Collection[str]) -> None:
    """Refuses mesh axes along which nothing would be divided: their devices would all do the same work."""
    for axis in ("context", "tensor"):
        if mesh.shape[axis] > 1 and axis not in divides:
            raise ConfigError(
                f"mesh.{axis} is {mesh.shape[axis]}, but nothing of this model is divided along it; set it to 1"
            )


def check_batch(rows: Batch, task: Task, config: TrainingConfig, mesh: Mesh) -> None:
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
