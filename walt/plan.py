"""Compile a program of a config for a TPU pod, without one: memory, time by the compiler's estimates, communication.

    walt plan --config=t2v/base_3b --topology=v5p:4x4x4 --config.training.mesh.data=1 --config.training.mesh.fsdp=64
    walt plan --config=t2v/base_3b --topology=v5p:4x4x4 --num_slices=2 --config.training.mesh.slice=2 --json=plan.json
    walt plan --config=t2v/base_3b --topology=v5p:2x2x1 --what=sample --batch_size=16
    walt plan --config=autoencoder/t2v_128 --topology=v5e:2x4 --what=decode
    walt plan --config=classes/ucf101_l --topology=v5e:2x4 --search --json=best.json

Needs libtpu (`pip install "walt[tpu]"`) and no TPU. If the program does not fit, the nearest change that does is looked for, by compiling it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import walt.config
from walt import command

if TYPE_CHECKING:
    from walt.experiment.config import ExperimentConfig
    from walt.planning.plan import Plan
    from walt.planning.topology import Topology


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flags of `walt plan`."""

    config: str = command.flag("Shipped config name or path of a config file, with an optional :variant.")
    topology: str = command.flag("Kind and shape of a slice: v4, v5e, v5p, v6e or tpu7x, such as v5p:4x4x8.")
    num_slices: int = command.flag("Slices of that shape, joined by the data-centre network.", default=1)
    what: str = command.flag(
        "The program: train (one step), sample (all steps of the config's sampler), or encode and decode of an autoencoder's config.",
        default="train",
    )
    batch_size: int | None = command.flag(
        "Videos of one run, for sample, encode and decode; by default 16, or what the mesh divides.", default=None
    )
    search: bool = command.flag(
        "Compile the train step with every mesh, rematerialisation and accumulation that divides it, and rank them.",
        default=False,
    )
    search_axes: tuple[str, ...] = command.flag(
        "Axes of the mesh between which a search divides the devices; the others stay as they are.",
        default=("data", "fsdp"),
    )
    jobs: int | None = command.flag(
        "Compilations of a search side by side; by default as many as fit into free memory, by what the first one takes.",
        default=None,
    )
    json: str | None = command.flag("File to write the plan to, as JSON.", default=None)


def main(argv: Sequence[str]) -> None:
    """Compiles, prints and writes; `argv` is [program, --flag=value, ...]."""
    rest, overrides = command.split_overrides(argv)
    arguments = command.parse(Arguments, rest)
    check(arguments)
    output = command.output_file(arguments.json) if arguments.json else None

    from walt.planning.topology import parse_topology

    topology = parse_topology(arguments.topology, arguments.num_slices)
    config = walt.config.apply_overrides(walt.config.load(arguments.config), overrides)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax looks for the TPU that libtpu promises

    from walt.experiment import parse
    from walt.experiment.plans import checksum

    experiment = parse(config)
    plan = searched(experiment, topology, arguments) if arguments.search else planned(experiment, topology, arguments)
    if output:
        plan = dataclasses.replace(
            plan, config=arguments.config, overrides=overrides, config_checksum=checksum(experiment)
        )
        output.write_text(plan.to_json(), encoding="utf-8")
        print(f"Plan: {output}")


def check(arguments: Arguments) -> None:
    """Raises `CommandError` for flags that do not go together."""
    if arguments.search and arguments.what != "train":
        raise command.CommandError(
            f"--search is of train steps, and --what is {arguments.what!r}: leave one of them out"
        )
    if not arguments.search and arguments.jobs is not None:
        raise command.CommandError("--jobs is of a search: add --search, or leave it out")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise command.CommandError(f"--jobs must be at least 1, got {arguments.jobs}")


def planned(experiment: ExperimentConfig, topology: Topology, arguments: Arguments) -> Plan:
    """The plan of what was asked for, or of the nearest change that fits."""
    from walt.experiment.plans import fitting, plan_program
    from walt.planning.plan import describe

    plan = plan_program(experiment, topology, arguments.what, arguments.batch_size)
    print("\n".join(describe(plan)))
    if plan.fits:
        return plan
    found = fitting(experiment, topology, plan, arguments.batch_size)
    if found is None:
        print("no rematerialisation, mesh or smaller part of the batch makes it fit; take a larger topology")
        return plan
    flags, plan = found
    print(f"it fits with {' '.join(flags)}:")
    print("\n".join(describe(plan)))
    return dataclasses.replace(plan, changes=tuple(flags))


def searched(experiment: ExperimentConfig, topology: Topology, arguments: Arguments) -> Plan:
    """The plan of the fastest candidate, with the ranking of all; raises `CommandError` if none fits."""
    from walt.experiment.plan_search import search
    from walt.planning.plan import describe
    from walt.planning.search import describe_ranking, ranked

    outcomes, best = search(experiment, topology, arguments.search_axes, arguments.jobs)
    print("\n".join(describe_ranking(outcomes)))
    if best is None:
        raise command.CommandError(
            f"no candidate fits {topology.name}; take a larger topology, or a wider --search_axes"
        )
    print("\n".join(describe(best)))
    return dataclasses.replace(best, search=tuple(ranked(outcomes)))


if __name__ == "__main__":
    command.run(main)
