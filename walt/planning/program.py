"""What a compiled program does, read from its text: cycles by kind of work, and collectives, with loops counted as often as they run."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: str  # its type
    text: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate; 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else 0

    @property
    def op_name(self) -> str:
        """Where in the source it comes from: names of functions and scopes."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.text)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """Names of what it is given."""
        given = self.text[len(self.result) + len(self.opcode) :].partition(", metadata=")[0].partition("), ")[0]
        return re.findall(r"%([\w.\-]+)", given)

    def called(self, attribute: str) -> list[str]:
        """Computations named by an attribute such as `body=%name` or `calls={%a, %b}`."""
        found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.text)
        if found is None:
            return []
        return [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")]


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same mesh axes.

    Attributes:
      bytes: that one device receives or sends in one run of the program, all of them together.
      count: how many there are in one run.
    """

    kind: str
    axis: str
    bytes: float
    count: int


@dataclass(frozen=True)
class Transfer:
    """One collective of a program.

    Attributes:
      bytes: that one device receives or sends in one run of it.
      runs: in one run of the program.
      hidden_cycles: of computation that the schedule does in each run while this goes on, and no other transfer was given.
    """

    kind: str
    axis: str
    bytes: float
    runs: float
    hidden_cycles: float


@dataclass(frozen=True)
class Kernel:
    """A kernel in a program.

    Attributes:
      op_name: where in the source it comes from.
      runs: in one run of the program.
      flops, bytes: of one run of the kernel on one device, as its author says; None if it does not say.
    """

    op_name: str
    runs: float
    flops: float | None
    bytes: float | None


@dataclass(frozen=True)
class Program:
    """A compiled program by computation; `entry` is where it starts."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def runs(self) -> dict[str, float]:
        """How often each computation that is a step of its own (no part of a fusion) runs."""
        counts: dict[str, float] = defaultdict(float)

        def visit(name: str, times: float) -> None:
            counts[name] += times
            for line in self.computations.get(name, ()):
                for part, often in self._inside(line):
                    visit(part, times * often)

        visit(self.entry, 1.0)
        return dict(counts)

    def _inside(self, line: Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often."""
        if line.opcode == "while":
            trips = self.trips(line)
            return [(part, trips) for part in (*line.called("body"), *line.called("condition"))]
        if line.opcode in ("call", "async-start"):
            return [(part, 1) for part in (*line.called("to_apply"), *line.called("calls"))]
        if line.opcode == "conditional":
            # One of them runs; the dearest, to be on the safe side.
            branches = line.called("branch_computations") or [
                *line.called("true_computation"),
                *line.called("false_computation"),
            ]
            return [(max(branches, key=self._cycles_within), 1)]
        return []

    def _cycles_within(self, name: str) -> float:
        """Of one run of a computation, with those that it runs."""
        return sum(
            line.cycles + sum(often * self._cycles_within(part) for part, often in self._inside(line))
            for line in self.computations.get(name, ())
        )

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler says, or what its counter, which starts at 0 in loops over layers, is compared with, by what is added
        to it in each run. Raises `ValueError` where neither is known."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
            return int(found[1])
        (condition,), (body,) = loop.called("condition"), loop.called("body")
        lines = self.computations.get(condition, ())
        bounds = [n for line in lines if (n := _constant(line)) is not None]
        counters = [
            found[1] for line in lines if (found := re.search(r"^[su]32.*get-tuple-element.*index=(\d+)", line.text))
        ]
        if len(bounds) != 1 or len(counters) != 1 or not any("direction=LT" in line.text for line in lines):
            raise ValueError(f"cannot tell how often the loop {loop.name} runs")
        return math.ceil(bounds[0] / self._stride(body, int(counters[0])))

    def _stride(self, body: str, counter: int) -> int:
        """What a loop adds to its counter; 1 where that is not plain to see."""
        lines = {line.name: line for line in self.computations.get(body, ())}
        results = next((line.operands for line in reversed(lines.values()) if line.opcode == "tuple"), [])
        added = lines.get(results[counter]) if counter < len(results) else None
        if added is None or added.opcode != "add":
            return 1
        steps = [n for name in added.operands if name in lines and (n := _constant(lines[name])) is not None]
        return steps[0] if len(steps) == 1 else 1

    def cycles(self, kind_of: Mapping[str, str]) -> dict[str, float]:
        """Estimated cycles by kind: that of the first pattern of `kind_of` that an instruction's origin matches, else "other"."""
        total: dict[str, float] = defaultdict(float)
        for name, times in self.runs().items():
            for instruction in self.computations.get(name, ()):
                if instruction.cycles:
                    total[_kind(instruction, kind_of)] += times * instruction.cycles
        return dict(total)

    def kernels(self) -> list[Kernel]:
        """Kernels that are no part of XLA, which has no estimate of their cycles."""
        return [
            Kernel(instruction.op_name or instruction.name, times, *_cost(instruction))
            for name, times in self.runs().items()
            for instruction in self.computations.get(name, ())
            if 'custom_call_target="tpu_custom_call"' in instruction.text
        ]

    def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
        """What devices send each other, by kind and by axes of a mesh of these sizes (its devices in order), the largest first."""
        found: dict[tuple[str, str], Collective] = {}
        for each in self.transfers(mesh):
            key = each.kind, each.axis
            before = found.get(key, Collective(*key, 0.0, 0))
            moved = each.runs * each.bytes
            found[key] = replace(before, bytes=before.bytes + moved, count=before.count + round(each.runs))
        return sorted(found.values(), key=lambda each: -each.bytes)

    def transfers(self, mesh: Mapping[str, int]) -> list[Transfer]:
        """Every collective of the program, with the computation that the schedule puts beside it."""
        runs = self.runs()
        wrapped = {name for line in self._lines(runs) if line.opcode == "async-start" for name in line.called("calls")}
        return [
            transfer
            for name, times in runs.items()
            if name not in wrapped
            for transfer in self._transfers_of(self.computations.get(name, ()), times, mesh)
        ]

    def _lines(self, names: Iterable[str]) -> Iterator[Instruction]:
        return (line for name in names for line in self.computations.get(name, ()))

    def _transfers_of(self, lines: Sequence[Instruction], times: float, mesh: Mapping[str, int]) -> Iterator[Transfer]:
        held = [self._collectives_in(line) for line in lines]
        # Where one collective stands: TPUs' compiler spreads it over fusions, which carry it on while they compute.
        places: dict[str, list[int]] = defaultdict(list)
        for place, inner in enumerate(held):
            for each, _ in inner:
                places[_identity(lines[place], each)].append(place)
        left = [line.cycles for line in lines]  # a cycle hides one transfer at a time
        for place, inner in enumerate(held):
            for each, inside in inner:
                first, *carriers = places[_identity(lines[place], each)]
                if first == place:
                    beside = carriers or _awaited(lines, place)
                    yield self._transfer(each, inside, times, mesh, sum(left[n] for n in beside))
                    for n in beside:
                        left[n] = 0

    def _collectives_in(self, line: Instruction) -> list[tuple[Instruction, str]]:
        """The collectives that an instruction is or holds, each with the name of the computation that holds it."""
        if _is_collective(line):
            return [(line, "")]
        parts = self._parts(line) if line.opcode in ("fusion", "async-start") else ()
        return [(inner, part) for part in parts for inner in self.computations.get(part, ()) if _is_collective(inner)]

    def _parts(self, line: Instruction) -> Iterator[str]:
        """The computations that an instruction is made of; what runs on SparseCores is a call within a call."""
        for name in (*line.called("calls"), *line.called("called_computations")):
            yield name
            for inner in self.computations.get(name, ()):
                yield from self._parts(inner)

    def _transfer(
        self, line: Instruction, inside: str, times: float, mesh: Mapping[str, int], beside: float
    ) -> Transfer:
        kind, result = line.opcode.removesuffix("-start"), result_bytes(line)
        members = group(line.text, math.prod(mesh.values()))
        if kind == "all-reduce" and inside.startswith("all-reduce-scatter"):
            # How TPUs' compiler writes a reduce-scatter: the sum of the whole, of which the fusion keeps a slice.
            kind, result = "reduce-scatter", result / len(members)
        return Transfer(kind, axes_of(members, mesh), traffic(kind, result, len(members)), times, beside)


def parse_program(text: str) -> Program:
    """The program in the text of a compiled HLO module."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    name, entry = None, ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        if name is None:
            if head := _HEAD.match(line):
                name, lines = head[1], []
                entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            computations[name], name = tuple(lines), None
        elif found := _INSTRUCTION.match(line):
            opcode = _OPCODE.search(found[2])
            if opcode:
                lines.append(Instruction(found[1], opcode[1], found[2][: opcode.start(1)], found[2]))
    return Program(computations, entry)


def _constant(line: Instruction) -> int | None:
    """The value of a whole number."""
    found = re.search(r"^[su]32\[\]\S* constant\((\d+)\)", line.text)
    return int(found[1]) if found else None


def _is_collective(line: Instruction) -> bool:
    return line.opcode.removesuffix("-start") in COLLECTIVES


def _identity(line: Instruction, collective: Instruction) -> str:
    """The same for all fusions that carry one collective: its channel."""
    channel = re.search(r"\bchannel_id=\d+", collective.text)
    return channel[0] if channel and line.opcode == "fusion" else line.name


def _awaited(lines: Sequence[Instruction], start: int) -> range:
    """Where the instructions stand that are scheduled while a collective goes on, until its done; none if it has no done.

    One on SparseCores is begun by its update, which has the operands; its start only sends the program there.
    """
    if not lines[start].opcode.endswith("-start"):
        return range(0)
    update = _next_with(lines, start, "async-update")
    begun = start if update is None else update
    done = _next_with(lines, begun, "-done")
    return range(begun + 1, begun + 1 if done is None else done)


def _next_with(lines: Sequence[Instruction], place: int, opcode: str) -> int | None:
    """Where the first instruction stands that ends so in its opcode and is given what that at `place` gives."""
    name = lines[place].name
    after = range(place + 1, len(lines))
    return next((n for n in after if lines[n].opcode.endswith(opcode) and name in lines[n].operands), None)


def kind(op_name: str, kind_of: Mapping[str, str]) -> str | None:
    """Of the first pattern of `kind_of` that an origin matches."""
    return next((found for pattern, found in kind_of.items() if re.search(pattern, op_name)), None)


def _kind(instruction: Instruction, kind_of: Mapping[str, str]) -> str:
    moves = re.match(r"copy|transpose|bitcast|reshape|slice|concat", instruction.name)
    return kind(instruction.op_name, kind_of) or ("data movement" if moves else "other")


def _cost(kernel: Instruction) -> tuple[float | None, float | None]:
    """FLOPs and bytes of a kernel: as its text says; of the compiler's own softmax, which says nothing, as its shapes do."""
    if estimate := re.search(r'"cost_estimate":\{([^}]*)\}', kernel.text):
        said = dict(re.findall(r'"(\w+)":"(\d+)"', estimate[1]))
        return float(said["flops"]), float(said["bytes_accessed"])
    operands = re.search(r"operand_layout_constraints=\{(.*?\})\}", kernel.text)
    if not kernel.name.startswith("online-softmax") or operands is None:
        return None, None
    # softmax(scores [… n m]) @ values [… m d] -> [… n d]
    scores, *_ = inputs = _ARRAY.findall(operands[1])
    (result,) = _ARRAY.findall(kernel.result)
    return 2.0 * _size(scores[1]) * int(result[1].split(",")[-1]), sum(map(_bytes, [*inputs, result]))


def _size(shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n)


def _bytes(array: tuple[str, str]) -> float:
    dtype, shape = array
    return _size(shape) * _BYTES.get(dtype, 4)


def result_bytes(instruction: Instruction) -> float:
    """Of a collective's result on one device; that of a start holds its inputs as well (but of an all-reduce), before its outputs."""
    sizes = [_bytes(array) for array in _ARRAY.findall(instruction.result)]
    if instruction.opcode == "all-gather-start":
        return sum(sizes[len(sizes) // 2 :])
    if instruction.opcode == "collective-permute-start":
        return max(sizes, default=0)
    return sum(sizes)


def traffic(kind: str, result: float, members: int) -> float:
    """Bytes that a device of a ring of so many sends, for a result of so many bytes on each."""
    share = (members - 1) / members if members else 0.0
    return {
        "all-gather": result * share,
        "all-reduce": 2 * result * share,
        "reduce-scatter": result * (members - 1),
        "all-to-all": result * share,
        "collective-permute": result,
    }[kind]


def group(text: str, devices: int) -> list[int]:
    """The first group of devices that talk to each other, in the order of the program's devices."""
    if found := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? ?\{{([^}}]*)\}}", text):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        places = _iota(devices, found[2], found[3]).reshape(tuple(axes.values()))
        along = re.findall(r"'(\w+)'", found[4])
        return [int(n) for n in places[tuple(slice(None) if name in along else 0 for name in axes)].ravel()]
    if found := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_IOTA}", text):
        return [int(n) for n in _iota(devices, found[3], found[4]).reshape(int(found[1]), int(found[2]))[0]]
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(n) for n in found[1].split(",")]
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text):
        return [int(found[1]), int(found[2])]
    return list(range(devices))


def _iota(devices: int, shape: str | None, order: str | None) -> np.ndarray:
    """0, 1, … in some shape, transposed by some order, as in "[2,4]T(1,0)"."""
    numbers = np.arange(devices)
    if shape:
        numbers = numbers.reshape([int(n) for n in shape.split(",")])
    return numbers.transpose([int(n) for n in order.split(",")]) if order else numbers


def axes_of(members: Sequence[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which these devices differ, such as "data+fsdp"."""
    places = np.array(np.unravel_index(np.asarray(members), tuple(mesh.values())))
    return "+".join(name for name, along in zip(mesh, places) if len(set(along.tolist())) > 1) or "none"
