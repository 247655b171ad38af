"""What is known of the TPU that is compiled for, which need not be there, and what its compiler is told."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

FUSION_SHARE = 3 / 4
"""Of a core's memory, for one fusion; the compiler's own choice is 16 MiB. Larger tiles let products wait less for the chip's memory: `launch/README.md`
has what was tried."""

OFFLOADED = ("all_gather", "2d_all_gather", "3d_all_gather", "all_reduce", "reduce_scatter", "nd_reduce_scatter")
"""Collectives that can run on SparseCores. Those over two or three axes of the grid of chips, as of a mesh axis that lies across them, are named apart."""


def core() -> Any:
    """Memory and number of the cores of the mesh in force, or of the machine; None where that is no TPU."""
    try:
        return pltpu.get_tpu_info()
    except ValueError:
        return None


def compiler_options(mesh: Mesh, *, on_sparse_cores: bool = True) -> dict[str, str] | None:
    """Of programs for this mesh; None where the compiler is left alone. `on_sparse_cores`: collectives run there, beside the computation, where a TPU has
    them (from v5p on, but for v5e)."""
    with jax.set_mesh(mesh):
        found = core()
    if found is None or found.vmem_capacity_bytes <= 16 * 2**20:
        return None
    options = {"xla_tpu_scoped_vmem_limit_kib": str(int(found.vmem_capacity_bytes * FUSION_SHARE) // 1024)}
    if on_sparse_cores and found.sparse_core is not None:
        options |= {f"xla_tpu_enable_sparse_core_collective_offload_{kind}": "true" for kind in OFFLOADED}
    return options
