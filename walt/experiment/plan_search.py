"""The search for the fastest train step: meshes, rematerialisation and accumulation, each candidate compiled."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from tqdm import tqdm

from walt.config import ConfigError, nearest
from walt.experiment.config import DiffusionExperiment, ExperimentConfig
from walt.experiment.planning import check_training, plan_training
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import BATCH_AXES
from walt.planning.plan import Plan
from walt.planning.search import Changes, Outcome, compile_all
from walt.planning.topology import Topology
from walt.transformer.config import TransformerConfig

AXES = ("data", "fsdp")
"""Of a mesh, between which the search divides devices by default."""
REMATS: tuple[str, ...] = typing.get_args(typing.get_type_hints(TransformerConfig)["remat"])
Candidate = tuple[Changes, ExperimentConfig]


def search(
    experiment: ExperimentConfig, topology: Topology, axes: Sequence[str] = AXES, jobs: int | None = None
) -> tuple[list[Outcome], Plan | None]:
    """What became of every candidate, and the plan of the fastest, if any fits.

    Raises `ConfigError` before anything is compiled: an axis that there is not, a mesh that does not fit the devices.
    """
    sizes = experiment.training.mesh.resolve(len(topology.devices()))
    chosen, outcomes = candidates(experiment, sizes, axes)
    best: Plan | None = None
    compiled = compile_all(partial(_plan, topology), chosen, jobs)
    for outcome, plan in tqdm(compiled, total=len(chosen), desc="compiling", unit="plan"):
        outcomes.append(outcome)
        if plan is not None and plan.fits:
            plan = dataclasses.replace(plan, changes=outcome.changes)
            best = plan if best is None or _seconds(plan) < _seconds(best) else best
    return outcomes, best


def candidates(
    experiment: ExperimentConfig, sizes: Mapping[str, int], axes: Sequence[str] = AXES
) -> tuple[list[Candidate], list[Outcome]]:
    """(What to compile, what cannot be and why.) The config itself is the first of them, if it can be.

    Args:
      sizes: of the config's mesh; axes that are not among `axes` keep theirs.
    """
    for axis in axes:
        if axis not in sizes:
            raise ConfigError(f"a mesh has no axis {axis!r} to search along{nearest(axis, sizes)}")
        if axis == "slice" or axes.count(axis) > 1:
            raise ConfigError(
                f"a search cannot divide devices along {', '.join(axes)}: each axis once, and not slice, which --num_slices says"
            )
    found: list[Candidate] = []
    skipped: list[Outcome] = []
    for mesh in _meshes(sizes, axes):
        flags = tuple(f"--config.training.mesh.{axis}={mesh[axis]}" for axis in axes)
        training = dataclasses.replace(experiment.training, mesh=MeshConfig(**mesh), accumulation=1)
        changed = dataclasses.replace(experiment, training=training)
        try:
            check_training(changed, mesh)
        except ConfigError as error:
            skipped.append(Outcome(flags, "skipped", str(error)))
            continue
        for parts in _accumulations(experiment.data.batch_size // math.prod(mesh[axis] for axis in BATCH_AXES)):
            accumulated = dataclasses.replace(training, accumulation=parts)
            for remat_flags, each in _rematerialised(dataclasses.replace(changed, training=accumulated)):
                found.append(((*flags, f"--config.training.accumulation={parts}", *remat_flags), each))
    itself = dataclasses.replace(
        experiment, training=dataclasses.replace(experiment.training, mesh=MeshConfig(**sizes))
    )
    return sorted(found, key=lambda candidate: candidate[1] != itself), skipped


def _meshes(sizes: Mapping[str, int], axes: Sequence[str]) -> Iterator[dict[str, int]]:
    """All meshes with as many devices along `axes` together."""
    if not axes:
        yield dict(sizes)
        return
    first, *others = axes
    whole = math.prod(sizes[axis] for axis in axes)
    for size in range(1, whole + 1):
        if whole % size == 0 and (others or size == whole):
            rest = dict(sizes) | {first: size} | ({others[0]: whole // size} if others else {})
            yield from _meshes(rest | dict.fromkeys(others[1:], 1), others)


def _accumulations(rows: int) -> Iterator[int]:
    """Powers of two that divide the rows of a device."""
    parts = 1
    while rows % parts == 0:
        yield parts
        parts *= 2


def _rematerialised(experiment: ExperimentConfig) -> Iterator[Candidate]:
    if not isinstance(experiment, DiffusionExperiment):
        yield (), experiment
        return
    for remat in REMATS:
        transformer = dataclasses.replace(experiment.transformer, remat=remat)  # type: ignore[arg-type]
        yield (f"--config.transformer.remat={remat}",), dataclasses.replace(experiment, transformer=transformer)


def _plan(topology: Topology, experiment: ExperimentConfig) -> Plan:
    return plan_training(experiment, topology)


def _seconds(plan: Plan) -> float:
    return math.inf if plan.estimated_step_seconds is None else plan.estimated_step_seconds
