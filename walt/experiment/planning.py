"""Plans of training on a TPU pod: the very step of the loop, lowered from shapes for devices that are not there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from walt.config import ConfigError
from walt.experiment.config import AutoencoderExperiment, DiffusionExperiment, ExperimentConfig
from walt.experiment.stage1 import check_rows, task_for
from walt.experiment.stage2 import diffusion_task
from walt.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated
from walt.parallel.rules import ParameterAxes
from walt.parallel.tpu import compiler_options
from walt.planning.plan import Plan, Work, make_plan
from walt.planning.topology import Topology
from walt.training.config import TrainingConfig
from walt.training.state import abstract_state
from walt.training.step import make_train_step
from walt.training.task import Task
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

PREPARED = "captions are embedded beforehand (walt prepare text): the frozen text encoder is no part of the step"
OFFLOADED = (
    "what waits in the memory of hosts is copied there and back at no cost: no figure of their bandwidth is assumed"
)
KINDS: Mapping[str, str] = {  # of the first that an operation's origin matches
    r"optimizer": "optimizer",
    r"text_encoder": "text encoder",
    r"cross_attention": "cross-attention",
    r"\battention|\(attention": "attention",
    r"\bmlp|\(mlp": "MLP",
    r"modulation": "modulation",
    r"embedding|conditioning": "embedding",
    r"conv_general_dilated": "convolution",
}


def plan_training(experiment: ExperimentConfig, topology: Topology) -> Plan:
    """The plan of one optimiser step, with the config's mesh, batch and rematerialisation.

    Raises `ConfigError` before anything is compiled: the mesh does not fit the devices, or does not divide the model or the batch.
    """
    devices = topology.devices()
    mesh = make_mesh(experiment.training.mesh, devices)
    task, axes = _task(experiment, mesh)
    lowered = lower_train_step(experiment, task, axes, mesh)
    frozen = isinstance(experiment, DiffusionExperiment) and experiment.text_encoder_path is not None
    cost = task.row_cost()
    work = Work(
        "train",
        experiment.data.batch_size,
        cost.tokens,
        cost.flops,
        experiment.training.num_steps,
        (*((PREPARED,) if frozen else ()), *((OFFLOADED,) if _offloads(experiment) else ())),
    )
    options = compiler_options(mesh, on_sparse_cores=experiment.training.collectives_on_sparse_cores)
    return make_plan(lowered, work, topology=topology, mesh=dict(mesh.shape), kinds=KINDS, options=options)


def _offloads(experiment: ExperimentConfig) -> bool:
    return isinstance(experiment, DiffusionExperiment) and experiment.transformer.remat == "offload"


def check_training(experiment: ExperimentConfig, sizes: Mapping[str, int]) -> None:
    """Raises `ConfigError` naming what does not divide over a mesh of these axis sizes."""
    shards = math.prod(sizes[axis] for axis in BATCH_AXES)
    rows, parts = experiment.data.batch_size, experiment.training.accumulation * shards
    if rows % parts:
        raise ConfigError(
            f"data.batch_size is {rows}, which does not divide into accumulation={experiment.training.accumulation} parts on {shards} "
            f"devices: make it a multiple of {parts}"
        )
    if isinstance(experiment, DiffusionExperiment):
        check_mesh(experiment.transformer, sizes)
    else:
        check_autoencoder(experiment, sizes)


def check_autoencoder(experiment: AutoencoderExperiment, sizes: Mapping[str, int]) -> None:
    """Raises `ConfigError` if there is no size of clips, or one that a mesh of these axis sizes does not divide."""
    if sizes["tensor"] > 1:
        raise ConfigError("mesh.tensor must be 1 for an autoencoder, which divides nothing along it")
    if experiment.clip_size is None:
        raise ConfigError("clip_size must be set to plan an autoencoder: frames, height and width of its clips")
    check_rows(experiment.autoencoder, experiment.clip_size[1], sizes["context"])


def _task(experiment: ExperimentConfig, mesh: Mesh) -> tuple[Task, ParameterAxes]:
    check_training(experiment, mesh.shape)
    if isinstance(experiment, DiffusionExperiment):
        # A published text encoder's embeddings are made beforehand, as its configs recommend.
        prepared = experiment.text_encoder_path is not None
        return diffusion_task(
            dataclasses.replace(experiment, text_source="prepared" if prepared else "trained")
        ), PARAMETER_AXES
    assert experiment.clip_size is not None  # as has been checked
    return task_for(experiment, experiment.clip_size), ()


def lower_train_step(experiment: ExperimentConfig, task: Task, axes: ParameterAxes, mesh: Mesh) -> Any:
    """The train step of the loop, from shapes alone."""
    training, rows = experiment.training, batch_sharding(mesh)
    state = abstract_state(task, training, mesh, axes)
    batch = {
        name: jax.ShapeDtypeStruct((experiment.data.batch_size, *spec.shape), spec.dtype, sharding=rows)
        for name, spec in task.batch_spec().items()
    }
    learning_rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    step = make_train_step(task, training, mesh, axes)
    with jax.set_mesh(mesh):
        return step.lower(state, batch, learning_rate)


def changes_that_save_memory(
    experiment: ExperimentConfig, mesh: Mapping[str, int]
) -> Iterator[tuple[str, ExperimentConfig]]:
    """Nearest changes first: (in words, the experiment so changed)."""
    if isinstance(experiment, DiffusionExperiment) and experiment.transformer.remat != "full":
        transformer = dataclasses.replace(experiment.transformer, remat="full")
        experiment = dataclasses.replace(experiment, transformer=transformer)
        yield "--config.transformer.remat=full", experiment
    if (found := more_fsdp(experiment, mesh)) is not None:
        experiment = found[1]
        yield found
    training = experiment.training
    shards = math.prod(mesh[axis] for axis in BATCH_AXES)
    parts = training.accumulation * 2
    while experiment.data.batch_size % (parts * shards) == 0:
        yield (
            f"--config.training.accumulation={parts}",
            _with(experiment, dataclasses.replace(training, accumulation=parts)),
        )
        parts *= 2


def more_fsdp(experiment: ExperimentConfig, mesh: Mapping[str, int]) -> tuple[str, ExperimentConfig] | None:
    """With parameters over as many devices as divide them: (in words, the experiment so changed); None if they lie so already."""
    training, whole = experiment.training, mesh["data"] * mesh["fsdp"]
    width = experiment.transformer.width if isinstance(experiment, DiffusionExperiment) else whole
    fsdp = max(n for n in range(1, whole + 1) if whole % n == 0 and width % n == 0)
    if fsdp <= mesh["fsdp"]:
        return None
    training = dataclasses.replace(training, mesh=dataclasses.replace(training.mesh, data=whole // fsdp, fsdp=fsdp))
    words = f"--config.training.mesh.data={whole // fsdp} --config.training.mesh.fsdp={fsdp}"
    return words, _with(experiment, training)


def _with(experiment: ExperimentConfig, training: TrainingConfig) -> ExperimentConfig:
    return dataclasses.replace(experiment, training=training)
