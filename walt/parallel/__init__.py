"""Devices: the mesh, which array dimension lies on which mesh axis, batches from process-local rows, multi-host
start-up.

This room knows nothing of models or training; everything in it works unchanged for one CPU device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from walt.parallel.processes import initialize as initialize


def __getattr__(name: str) -> Any:
    if name != "initialize":
        raise AttributeError(f"module 'walt.parallel' has no attribute {name!r}")
    from walt.parallel.processes import initialize  # imports jax, which configs can do without

    return initialize
