"""TPU generations, and the devices of a pod as the compiler sees them."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from walt.config import ConfigError, nearest


@dataclass(frozen=True)
class Generation:
    """One kind of TPU; figures of a chip, as Google publishes them.

    Attributes:
      peak_flops: bfloat16, per second.
      hbm_bytes: memory.
      hbm_bandwidth: bytes per second to and from that memory.
      ici_bandwidth: bytes per second to and from the other chips of a slice, all links together.
      devices_per_chip: how many JAX devices a chip is.
      clock: of the cores, which the compiler's cycles are counted in; peak_flops over what the matrix units do in a cycle.
      attention: part of the peak that XLA's own attention reaches where it is best (`tests/benchmarks/bench_transformer.py --dense`); that of tpu7x is
        taken to be v6e's, whose matrix units are as large.
      dimensions: of the grid of chips, 2 or 3.
      options: of the topology description.
    """

    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float
    attention: float
    dimensions: int
    devices_per_chip: int = 1
    options: dict[str, Any] = field(default_factory=dict)


DCN_BANDWIDTH = 6.25e9
"""Bytes per second and chip between slices: 50 Gbit/s, half of a 100 Gbit/s interface for two chips [assumed]."""

GENERATIONS = {
    # As one device per chip; without the option each of a chip's two cores is one.
    "v4": Generation(275e12, 32e9, 1228e9, 300e9, 1.05e9, 0.19, 3, options={"chip_config_name": "megacore"}),
    "v5e": Generation(197e12, 16e9, 819e9, 200e9, 1.5e9, 0.17, 2),
    "v5p": Generation(459e12, 95e9, 2765e9, 600e9, 1.75e9, 0.18, 3),
    "v6e": Generation(918e12, 32e9, 1640e9, 448e9, 1.75e9, 0.087, 2),
    "tpu7x": Generation(2307e12, 192e9, 7380e9, 1200e9, 2.2e9, 0.087, 3, devices_per_chip=2),
}


@dataclass(frozen=True)
class Topology:
    """A pod slice, or several of them, such as `v5p:4x4x8`."""

    name: str
    generation: Generation
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.num_slices

    def devices(self) -> Sequence[Any]:
        """For compiling only: they hold nothing and run nothing.

        Raises `ConfigError` if libtpu is missing, or knows no such shape.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise ConfigError(f'compiling for {self.name} needs libtpu, and no TPU: pip install "walt[tpu]"')
        # Neither a TPU nor its metadata server is there, and several compilers may run side by side.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        options = dict(self.generation.options)
        if self.num_slices > 1:
            options["num_slices"] = self.num_slices
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"libtpu knows no topology {self.name}: {str(error).splitlines()[0]}") from error


def parse_topology(name: str, num_slices: int = 1) -> Topology:
    """The topology that a name such as `v5p:4x4x8` means; raises `ConfigError` saying what would be right."""
    generation, colon, sizes = name.partition(":")
    if generation not in GENERATIONS:
        known = ", ".join(GENERATIONS)
        raise ConfigError(f"topology {name!r}: {generation!r} is none of {known}{nearest(generation, GENERATIONS)}")
    found = GENERATIONS[generation]
    shape = tuple(int(size) if size.isdecimal() else 0 for size in sizes.split("x"))
    if not colon or len(shape) != found.dimensions or min(shape) < 1:
        example = "x".join(["4"] * found.dimensions)
        raise ConfigError(f"topology {name!r} is not of the form {generation}:{example}, chips along each dimension")
    if num_slices < 1:
        raise ConfigError(f"num_slices must be at least 1, got {num_slices}")
    return Topology(name, found, shape, num_slices)
