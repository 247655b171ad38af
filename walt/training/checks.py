"""What is refused before work is wasted: work directories, meshes and batches that a run cannot use."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Collection, Sequence

import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from walt.config import ConfigError, diff, from_json, to_json
from walt.parallel.mesh import batch_shards, count_rows
from walt.training.checkpoint import stored_config
from walt.training.config import TrainingConfig
from walt.training.folder import check_folder, check_newest, latest_step
from walt.training.metrics import read_metrics
from walt.training.task import Batch, Evaluator, Task

NONE = 2**32 - 1  # the step of no checkpoint, among those that processes tell each other


def check_workdir(
    workdir: epath.PathLike, config: TrainingConfig, resolved_config: ConfigDict, model_keys: Sequence[str]
) -> tuple[int | None, list[str]]:
    """(The step to go on from, None for a new run; what of the config has changed.) Refuses a work directory that holds something else,
    before anything in it is touched.
    """
    check_folder(workdir)
    check_newest(workdir)
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


def check_config(workdir: epath.PathLike, config: ConfigDict, model_keys: Sequence[str]) -> list[str]:
    """Refuse (`ConfigError` with the differences) to resume with another value under `model_keys`; returns the other
    differences.

    `model_keys` are dotted prefixes of the config, such as "transformer": whatever decides what the parameters mean and
    what they learn from. What the stored config does not name contradicts nothing: an older version did not know it.
    """

    def is_fatal(line: str) -> bool:
        name, _, change = line.partition(": ")
        return not change.startswith("(absent)") and is_under(name, model_keys)

    changed = diff(stored_config(workdir), from_json(to_json(config)))
    fatal = [line for line in changed if is_fatal(line)]
    if fatal:
        raise ConfigError(
            f"{workdir} holds a run of another config, so it was left as it is; choose another workdir, or undo:\n  "
            + "\n  ".join(fatal)
            + "".join(f"\nalso changed, which alone would be fine: {line}" for line in changed if line not in fatal)
        )
    return changed


def is_under(name: str, keys: Sequence[str]) -> bool:
    """Whether the dotted name of a value is one of these keys, or lies below one."""
    return any(f"{name}.".startswith(f"{key}.") for key in keys)


def check_same_everywhere(
    workdir: epath.PathLike,
    step: int | None,
    config: TrainingConfig,
    resolved_config: ConfigDict,
    model_keys: Sequence[str],
) -> None:
    """Refuses to train if the processes of the job have found other checkpoints or were given other configs: each would train a run of its
    own and take it for that of all.
    """
    decides = [line for line in diff(ConfigDict(), resolved_config) if is_under(line.partition(": ")[0], model_keys)]
    checksum = zlib.crc32("\n".join([repr(config), *decides]).encode())
    mine = np.array([NONE if step is None else step, checksum], np.uint32)
    steps, configs = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, 2).T
    if (steps != steps[0]).any():
        seen = [f"process {index} {'none' if at == NONE else f'that of step {at}'}" for index, at in enumerate(steps)]
        raise ConfigError(
            f"the processes of this job see different checkpoints in {workdir} ({', '.join(seen)}): it must be one folder that all of them share"
        )
    if (configs != configs[0]).any():
        others = ", ".join(str(index) for index in np.flatnonzero(configs != configs[0]))
        raise ConfigError(
            f"the processes of this job were given different configs (process {others} another than process 0): start all with the same command"
        )


def check_mesh(mesh: Mesh, divides: Collection[str]) -> None:
    """Refuses mesh axes along which nothing would be divided: their devices would all do the same work."""
    for axis in ("context", "tensor"):
        if mesh.shape[axis] > 1 and axis not in divides:
            raise ConfigError(
                f"mesh.{axis} is {mesh.shape[axis]}, but nothing of this model is divided along it; set it to 1"
            )


def check_best(config: TrainingConfig, evaluators: Sequence[Evaluator]) -> None:
    """Refuses to keep the best checkpoints by a figure that is not measured, or never of a state that is saved."""
    metric = config.saving.best_metric
    name, slash, _ = metric.partition("/")
    if not (config.saving.keep_best and slash):
        return
    found = {evaluator.name: evaluator for evaluator in evaluators}
    if name not in found:
        raise ConfigError(
            f"saving.best_metric is {metric!r}, but nothing named {name!r} is measured in this run; there is {', '.join(found) or 'nothing'}"
        )
    every = found[name].every
    if not found[name].takes_long and math.lcm(every, config.checkpoint_every) > config.num_steps:
        raise ConfigError(
            f"saving.best_metric {metric!r} is measured every {every} steps and a checkpoint written every {config.checkpoint_every}, so none of "
            f"{config.num_steps} steps has both: let one be a multiple of the other"
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
