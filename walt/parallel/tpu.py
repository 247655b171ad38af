"""What is known of the TPU that is compiled for, which need not be there, and what its compiler is told."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

FUSION_SHARE = 3 / 4
"""Of a core's memory, for one fusion; the compiler's own choice is 16 MiB. Larger tiles let products wait less for the chip's memory: `launch/README.md`
has what was tried."""


def core() -> Any:
    """Memory and number of the cores of the mesh in force, or of the machine; None where that is no TPU."""
    try:
        return pltpu.get_tpu_info()
    except ValueError:
        return None


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Of programs for this mesh; None where the compiler is left alone."""
    with jax.set_mesh(mesh):
        found = core()
    if found is None or found.vmem_capacity_bytes <= 16 * 2**20:
        return None
    return {"xla_tpu_scoped_vmem_limit_kib": str(int(found.vmem_capacity_bytes * FUSION_SHARE) // 1024)}
