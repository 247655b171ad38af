"""A plan: whether a program fits a pod, and what one run of it would take, by the compiler's own estimates."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from walt.planning.program import Collective, Kernel, Transfer, kind, parse_program
from walt.planning.topology import DCN_BANDWIDTH, Generation, Topology

KERNEL_EFFICIENCY = 0.14
"""Of peak: what XLA's own attention within windows reaches where it is best, and no better."""

ASSUMPTIONS = (
    "compiler estimates, not a measurement: cycles that XLA's cost model gives each operation, at the clock of the cores",
    "loops count as often as they run; of branches the dearest",
    f"a kernel of our own takes the longer of its products at {KERNEL_EFFICIENCY} of peak and its bytes at the bandwidth of memory",
    "collectives move their bytes around a ring at the published bandwidth of a chip, and between slices at 6.25 GB/s a chip",
    "a collective is hidden by the estimated cycles that the schedule puts beside it, between its start and its done, or in the fusions that "
    "carry it on while they compute, each cycle once; the rest of its time adds to the step",
)


@dataclass(frozen=True)
class Plan:
    """Figures are of one device unless they say otherwise; None where there is no estimate.

    Attributes:
      what: the program.
      fits: whether it compiles within the memory of a device.
      hbm_limit_bytes: as published; the compiler, which decides whether it fits, has a little more or less.
      peak_bytes: arguments, results that are no arguments, temporaries and code together; of a program that does not fit what the compiler says
        it would need.
      model_flops: of all devices together in one run: products of the algorithm, no recomputation.
      xla_flops: what XLA counts, loops as often as they run not included.
      estimated_collective_seconds: of all collectives, hidden or not.
      exposed_collective_seconds: of what no computation is scheduled beside.
      estimated_step_seconds: cycles at the clock, and collectives as far as they are exposed.
      changes: flags with which this is a plan of the config that was asked for.
      estimated_mfu: model FLOPs per second over the peak of all chips.
    """

    what: str
    topology: str
    num_slices: int
    chips: int
    mesh: Mapping[str, int]
    fits: bool
    hbm_limit_bytes: float
    peak_bytes: float | None
    argument_bytes: float | None
    temp_bytes: float | None
    model_flops: float
    xla_flops: float | None
    estimated_cycles: float | None
    cycles_by_kind: Mapping[str, float]
    collectives: tuple[Collective, ...]
    estimated_collective_seconds: float | None
    exposed_collective_seconds: float | None
    estimated_step_seconds: float | None
    estimated_mfu: float | None
    unmodelled: tuple[str, ...]
    compile_seconds: float
    versions: Mapping[str, str]
    assumptions: tuple[str, ...]
    changes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Indented, with a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def make_plan(
    lowered: Any,
    *,
    what: str,
    topology: Topology,
    mesh: Mapping[str, int],
    model_flops: float,
    kinds: Mapping[str, str],
    assumptions: tuple[str, ...] = (),
) -> Plan:
    """Compiles a program lowered for the devices of `topology` and reads what it needs.

    Args:
      lowered: from `jax.jit(…).lower(…)`.
      mesh: sizes of its axes, the devices in order.
      model_flops: of one run, over all devices.
      kinds: pattern of an operation's origin -> kind of work.
      assumptions: of the program, beside those of every plan.
    """
    began = time.monotonic()
    generation = topology.generation
    devices = topology.chips * generation.devices_per_chip
    limit = generation.hbm_bytes / generation.devices_per_chip
    common: dict[str, Any] = {
        "what": what,
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "chips": topology.chips,
        "mesh": dict(mesh),
        "hbm_limit_bytes": limit,
        "model_flops": model_flops,
        "assumptions": (*ASSUMPTIONS, *assumptions),
        "versions": {name: _version(name) for name in ("jax", "libtpu")},
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = memory_in(str(error))
        if needed is None:
            raise
        return Plan(
            **(common | dict.fromkeys(NOT_COMPILED)),
            fits=False,
            peak_bytes=needed,
            cycles_by_kind={},
            collectives=(),
            unmodelled=(),
            compile_seconds=time.monotonic() - began,
        )
    memory, program = compiled.memory_analysis(), parse_program(compiled.as_text())
    by_kind, unmodelled = program.cycles(kinds), []
    for kernel in program.kernels():
        if (cycles := kernel_cycles(kernel, generation)) is None:
            unmodelled.append(kernel.op_name)
        else:
            name = kind(kernel.op_name, kinds) or "other"
            by_kind[name] = by_kind.get(name, 0.0) + cycles
    cycles = sum(by_kind.values())
    transfers = program.transfers(mesh)
    talking = sum(each.runs * seconds(each, topology) for each in transfers)
    waiting = sum(exposed(each, topology) for each in transfers)
    step = cycles / generation.clock + waiting
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    peak_flops = generation.peak_flops / generation.devices_per_chip * devices
    return Plan(
        **common,
        fits=True,
        peak_bytes=peak,
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        xla_flops=compiled.cost_analysis().get("flops"),
        estimated_cycles=cycles,
        cycles_by_kind=dict(sorted(by_kind.items(), key=lambda each: -each[1])),
        collectives=tuple(program.collectives(mesh)),
        estimated_collective_seconds=talking,
        exposed_collective_seconds=waiting,
        estimated_step_seconds=None if unmodelled else step,
        estimated_mfu=None if unmodelled else model_flops / step / peak_flops,
        unmodelled=tuple(unmodelled),
        compile_seconds=time.monotonic() - began,
    )


NOT_COMPILED = (
    "argument_bytes",
    "temp_bytes",
    "xla_flops",
    "estimated_cycles",
    "estimated_collective_seconds",
    "exposed_collective_seconds",
    "estimated_step_seconds",
    "estimated_mfu",
)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def kernel_cycles(kernel: Kernel, generation: Generation) -> float | None:
    """Of all its runs in one run of the program; None if it does not say what it costs."""
    if kernel.flops is None or kernel.bytes is None:
        return None
    per_device = generation.devices_per_chip
    computing = kernel.flops / (KERNEL_EFFICIENCY * generation.peak_flops / per_device)
    moving = kernel.bytes / (generation.hbm_bandwidth / per_device)
    return kernel.runs * max(computing, moving) * generation.clock


def seconds(collective: Collective | Transfer, topology: Topology) -> float:
    """Of its bytes at the bandwidth of a device's links, of those between slices if it crosses them."""
    crosses = topology.num_slices > 1 and "slice" in collective.axis.split("+")
    bandwidth = DCN_BANDWIDTH if crosses else topology.generation.ici_bandwidth
    return collective.bytes / (bandwidth / topology.generation.devices_per_chip)


def exposed(transfer: Transfer, topology: Topology) -> float:
    """Seconds of all its runs in which a device has nothing scheduled but to wait for it."""
    return transfer.runs * max(0.0, seconds(transfer, topology) - transfer.hidden_cycles / topology.generation.clock)


def memory_in(message: str) -> float | None:
    """Bytes that a compiler says a program would use of a device's memory; None if the message is of something else."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    if found is None:
        return None
    return float(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[found[2]]


def describe(plan: Plan, rows: int, steps: int) -> list[str]:
    """The plan for people: lines to print. `rows` of a batch, and `steps` of the whole schedule (0 for none)."""
    chips = f"{plan.chips} chips" + (f" in {plan.num_slices} slices" if plan.num_slices > 1 else "")
    lines = [
        f"{plan.what} on {plan.topology} ({chips}), mesh "
        + ", ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1)
    ]
    peak, limit = plan.peak_bytes or 0.0, plan.hbm_limit_bytes
    verdict = "fits" if plan.fits else "does NOT fit"
    lines.append(f"  memory      {verdict}: {peak / 1e9:.1f} of {limit / 1e9:.0f} GB a device")
    if plan.estimated_cycles is None:
        return lines
    assert plan.argument_bytes is not None and plan.temp_bytes is not None
    lines[-1] += f" ({plan.argument_bytes / 1e9:.1f} GB arguments, {plan.temp_bytes / 1e9:.1f} GB temporary)"
    lines.append(f"  model FLOPs {plan.model_flops:.3g} a run over all chips")
    lines.append(f"  cycles      {plan.estimated_cycles:.4g} a device:")
    lines += [f"    {kind:16s} {100 * n / plan.estimated_cycles:5.1f} %" for kind, n in plan.cycles_by_kind.items()]
    talking, waiting = plan.estimated_collective_seconds or 0.0, plan.exposed_collective_seconds or 0.0
    lines.append(
        f"  collectives {1e3 * talking:.1f} ms, of which {1e3 * waiting:.1f} ms with no computation beside them:"
    )
    lines += [
        f"    {each.kind:18s} over {each.axis:12s} {each.bytes / 1e9:8.2f} GB in {each.count}"
        for each in plan.collectives
    ]
    if plan.estimated_step_seconds is None:
        lines.append(f"  no estimate of time: the program holds kernels without one: {', '.join(plan.unmodelled)}")
        return lines
    step = plan.estimated_step_seconds
    lines.append(f"  time        {step:.3f} s a run, {rows / step / plan.chips:.3g} rows a second and chip")
    lines.append(f"  MFU         {plan.estimated_mfu:.3f} (compiler estimate, not a measurement)")
    if steps:
        hours = step * steps / 3600
        lines.append(f"  schedule    {steps:,} steps: {hours / 24:.1f} days, {hours * plan.chips:,.0f} chip hours")
    lines += [f"  note: {line}" for line in plan.assumptions[len(ASSUMPTIONS) :]]
    lines.append(
        f"  compiled in {plan.compile_seconds:.0f} s; {', '.join(f'{n} {v}' for n, v in plan.versions.items())}"
    )
    return lines
