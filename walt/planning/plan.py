"""A plan: whether a program fits a pod, and what one run of it would take, by the compiler's own estimates."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from walt.planning.program import Collective, Kernel, Program, Transfer, kind, parse_program
from walt.planning.topology import DCN_BANDWIDTH, Generation, Topology

ASSUMPTIONS = (
    "compiler estimates, not a measurement: cycles that XLA's cost model gives each operation, at the clock of the cores",
    "loops count as often as they run; of branches the dearest",
    "a kernel takes the longer of its products, at the part of the peak that XLA's own attention reaches at best, and its bytes at the bandwidth of memory",
    "collectives move their bytes around a ring at the published bandwidth of a chip, and between slices at 6.25 GB/s a chip",
    "a collective is hidden by the estimated cycles that the schedule puts beside it, between its start and its done, or in the fusions that "
    "carry it on while they compute, each cycle once; the rest of its time adds to the step",
)


@dataclass(frozen=True)
class Work:
    """What one run of a program does.

    Attributes:
      what: the program: train, sample, decode or encode.
      rows: videos of one run, on all devices together.
      row_tokens: of one of them.
      row_flops: model FLOPs of one of them: products of the algorithm, no recomputation.
      steps: runs of the whole schedule; 0 for none.
      assumptions: beside those of every plan.
    """

    what: str
    rows: int
    row_tokens: int
    row_flops: float
    steps: int = 0
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """Figures are of one device unless they say otherwise; None where there is no estimate.

    Attributes:
      what: the program.
      config, overrides, config_checksum: of which config, what was changed in it on the command line, and the SHA-256 of its resolved JSON.
      fits: whether it compiles within the memory of a device.
      hbm_limit_bytes: as published; the compiler, which decides whether it fits, has a little more or less.
      headroom_bytes: what is left of that; negative is what is missing.
      peak_bytes: arguments, results that are no arguments, temporaries and code together; of a program that does not fit what the compiler says
        it would need.
      model_flops: of all devices together in one run: products of the algorithm, no recomputation.
      xla_flops: what XLA counts, loops as often as they run not included.
      estimated_collective_seconds: of all collectives, hidden or not.
      exposed_collective_seconds: of what no computation is scheduled beside.
      estimated_step_seconds: cycles at the clock, and collectives as far as they are exposed.
      rows: videos of one run, on all devices together.
      kernels, unmodelled: where its kernels come from, and those of them that do not say what they cost.
      schedule_steps, schedule_seconds, schedule_chip_hours: of the whole schedule; None for a program without one.
      compiler_options: those of the program, and flags of XLA and of libtpu in the environment; it is compiled with no others.
      search: of a search, what became of every candidate (`walt.planning.search.Outcome`), the best first; this is the plan of the best.
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
    headroom_bytes: float
    peak_bytes: float
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
    rows: int
    rows_per_second_per_chip: float | None
    tokens_per_second_per_chip: float | None
    schedule_steps: int | None
    schedule_seconds: float | None
    schedule_chip_hours: float | None
    kernels: tuple[str, ...]
    unmodelled: tuple[str, ...]
    compile_seconds: float
    compiler_options: Mapping[str, str]
    versions: Mapping[str, str]
    assumptions: tuple[str, ...]
    changes: tuple[str, ...] = ()
    search: tuple[Any, ...] = ()
    config: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    config_checksum: str | None = None

    def to_json(self) -> str:
        """Indented, with a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def make_plan(
    lowered: Any,
    work: Work,
    *,
    topology: Topology,
    mesh: Mapping[str, int],
    kinds: Mapping[str, str],
    options: Mapping[str, str] | None = None,
) -> Plan:
    """Compiles a program lowered for the devices of `topology` and reads what it needs.

    Args:
      lowered: from `jax.jit(…).lower(…)`.
      work: of one run.
      mesh: sizes of its axes, the devices in order.
      kinds: pattern of an operation's origin -> kind of work.
      options: of the compiler, as the program itself gives them.
    """
    began = time.monotonic()
    limit = topology.generation.hbm_bytes / topology.generation.devices_per_chip
    common: dict[str, Any] = {
        "what": work.what,
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "chips": topology.chips,
        "mesh": dict(mesh),
        "hbm_limit_bytes": limit,
        "model_flops": work.rows * work.row_flops,
        "rows": work.rows,
        "schedule_steps": work.steps or None,
        "assumptions": (*ASSUMPTIONS, *work.assumptions),
        "compiler_options": {
            **(options or {}),
            **{name: os.environ[name] for name in COMPILER_FLAGS if os.environ.get(name)},
        },
        "versions": {name: _version(name) for name in ("jax", "libtpu")},
    }
    try:
        compiled, text = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        needed = memory_in(str(error))
        if needed is None:
            raise
        return Plan(
            **(common | dict.fromkeys(NOT_COMPILED)),
            fits=False,
            peak_bytes=needed,
            headroom_bytes=limit - needed,
            cycles_by_kind={},
            collectives=(),
            kernels=(),
            unmodelled=(),
            compile_seconds=time.monotonic() - began,
        )
    took, program = time.monotonic() - began, parse_program(text)
    return Plan(
        **common,
        **_memory(compiled.memory_analysis(), limit),
        **_time(program, work, topology, mesh, kinds),
        fits=True,
        xla_flops=compiled.cost_analysis().get("flops"),
        compile_seconds=took,
    )


def _compile(lowered: Any) -> tuple[Any, str]:
    """The compiled program and its text, as its compiler writes it down: JAX cannot read what runs on SparseCores."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = list(Path(folder).glob("*.after_codegen.txt"))
        return compiled, written[0].read_text(encoding="utf-8") if written else compiled.as_text()


COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
NOT_COMPILED = (
    "argument_bytes",
    "temp_bytes",
    "xla_flops",
    "estimated_cycles",
    "estimated_collective_seconds",
    "exposed_collective_seconds",
    "estimated_step_seconds",
    "estimated_mfu",
    "rows_per_second_per_chip",
    "tokens_per_second_per_chip",
    "schedule_seconds",
    "schedule_chip_hours",
)


def _memory(analysis: Any, limit: float) -> dict[str, Any]:
    peak = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )
    return {
        "peak_bytes": peak,
        "headroom_bytes": limit - peak,
        "argument_bytes": analysis.argument_size_in_bytes,
        "temp_bytes": analysis.temp_size_in_bytes,
    }


def _time(
    program: Program, work: Work, topology: Topology, mesh: Mapping[str, int], kinds: Mapping[str, str]
) -> dict[str, Any]:
    """The estimates; those of whole runs are None where the program holds a kernel that does not say what it costs."""
    generation = topology.generation
    by_kind, kernels, unmodelled = program.cycles(kinds), program.kernels(), []
    for kernel in kernels:
        if (cycles := kernel_cycles(kernel, generation)) is None:
            unmodelled.append(kernel.op_name)
        else:
            name = kind(kernel.op_name, kinds) or "other"
            by_kind[name] = by_kind.get(name, 0.0) + cycles
    cycles, transfers = sum(by_kind.values()), program.transfers(mesh)
    waiting = sum(exposed(each, topology) for each in transfers)
    step = cycles / generation.clock + waiting
    rows = work.rows / step / topology.chips if step else None  # a CPU's compiler estimates no cycles
    whole: dict[str, float | None] = {
        "estimated_step_seconds": step,
        "estimated_mfu": rows and rows * work.row_flops / generation.peak_flops,
        "rows_per_second_per_chip": rows,
        "tokens_per_second_per_chip": rows and rows * work.row_tokens,
        "schedule_seconds": step * work.steps if work.steps else None,
        "schedule_chip_hours": step * work.steps * topology.chips / 3600 if work.steps else None,
    }
    return {
        "estimated_cycles": cycles,
        "cycles_by_kind": dict(sorted(by_kind.items(), key=lambda each: -each[1])),
        "collectives": tuple(program.collectives(mesh)),
        "estimated_collective_seconds": sum(each.runs * seconds(each, topology) for each in transfers),
        "exposed_collective_seconds": waiting,
        "kernels": tuple(kernel.op_name for kernel in kernels),
        "unmodelled": tuple(unmodelled),
        **(dict.fromkeys(whole) if unmodelled else whole),
    }


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
    computing = kernel.flops / (generation.attention * generation.peak_flops / per_device)
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
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message) or re.search(
        r"memory required for [\w ]+\(([\d.]+)([KMGT]?)\) exceeds available HBM", message
    )
    if found is None:
        return None
    return float(found[1]) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[found[2]]


PROGRAMS = {"train": "train step", "sample": "sampling", "decode": "decoding", "encode": "encoding"}


def describe(plan: Plan) -> list[str]:
    """The plan for people: lines to print."""
    chips = f"{plan.chips} chips" + (f" in {plan.num_slices} slices" if plan.num_slices > 1 else "")
    axes = ", ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1)
    lines = [
        f"{PROGRAMS[plan.what]} of {plan.rows} videos on {plan.topology} ({chips}), mesh {axes or 'of one device'}",
        f"  memory      {verdict(plan)}",
    ]
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
    lines += _of_time(plan)
    lines += [f"  note: {line}" for line in plan.assumptions[len(ASSUMPTIONS) :]]
    options = "".join(f", {name}={value}" for name, value in plan.compiler_options.items())
    versions = ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    return [*lines, f"  compiled in {plan.compile_seconds:.0f} s; {versions}{options}"]


def verdict(plan: Plan) -> str:
    """Whether it fits, and by how much, in words."""
    room, limit = plan.headroom_bytes / 1e9, plan.hbm_limit_bytes / 1e9
    how = f"fits by {room:.1f} GB" if plan.fits else f"does NOT fit: {-room:.1f} GB too much"
    return f"{how}: {plan.peak_bytes / 1e9:.1f} of {limit:.0f} GB a device"


def _of_time(plan: Plan) -> list[str]:
    if plan.unmodelled:
        return [f"  no estimate of time: the program holds kernels without one: {', '.join(plan.unmodelled)}"]
    if not plan.rows_per_second_per_chip or plan.estimated_step_seconds is None:
        return []
    lines = [
        f"  time        {plan.estimated_step_seconds:.3g} s a run; of each chip {plan.rows_per_second_per_chip:.3g} videos, "
        f"{plan.tokens_per_second_per_chip:,.0f} tokens a second",
        f"  MFU         {plan.estimated_mfu:.3f} (compiler estimate, not a measurement)",
    ]
    if plan.schedule_seconds is not None:
        days, hours = plan.schedule_seconds / 86400, plan.schedule_chip_hours
        lines.append(f"  schedule    {plan.schedule_steps:,} steps: {days:.1f} days, {hours:,.0f} chip hours")
    return lines
