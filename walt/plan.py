"""Compile a program of a config for a TPU pod, without one: memory, time by the compiler's estimates, communication.

    walt plan --config=t2v/base_3b --topology=v5p:4x4x4 --config.training.mesh.data=1 --config.training.mesh.fsdp=64
    walt plan --config=t2v/base_3b --topology=v5p:4x4x4 --num_slices=2 --config.training.mesh.slice=2 --json=plan.json
    walt plan --config=t2v/base_3b --topology=v5p:2x2x1 --what=sample --batch_size=16
    walt plan --config=autoencoder/t2v_128 --topology=v5e:2x4 --what=decode

Needs libtpu (`pip install "walt[tpu]"`) and no TPU. If the program does not fit, the nearest change that does is looked for, by compiling it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import walt.config
from walt import command


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
    json: str | None = command.flag("File to write the plan to, as JSON.", default=None)


def main(argv: Sequence[str]) -> None:
    """Compiles, prints and writes; `argv` is [program, --flag=value, ...]."""
    rest, overrides = command.split_overrides(argv)
    arguments = command.parse(Arguments, rest)
    output = command.output_file(arguments.json) if arguments.json else None

    from walt.planning.topology import parse_topology

    topology = parse_topology(arguments.topology, arguments.num_slices)
    config = walt.config.apply_overrides(walt.config.load(arguments.config), overrides)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax looks for the TPU that libtpu promises

    from walt.experiment import parse
    from walt.experiment.plans import checksum, fitting, plan_program
    from walt.planning.plan import describe

    experiment = parse(config)
    plan = plan_program(experiment, topology, arguments.what, arguments.batch_size)
    print("\n".join(describe(plan)))
    if not plan.fits:
        found = fitting(experiment, topology, plan, arguments.batch_size)
        if found is None:
            print("no rematerialisation, mesh or smaller part of the batch makes it fit; take a larger topology")
        else:
            flags, plan = found
            plan = dataclasses.replace(plan, changes=tuple(flags))
            print(f"it fits with {' '.join(flags)}:")
            print("\n".join(describe(plan)))
    if output:
        plan = dataclasses.replace(
            plan, config=arguments.config, overrides=overrides, config_checksum=checksum(experiment)
        )
        output.write_text(plan.to_json(), encoding="utf-8")
        print(f"Plan: {output}")


if __name__ == "__main__":
    command.run(main)
