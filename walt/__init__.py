"""W.A.L.T: latent video diffusion with window attention, in JAX.

`walt.load(path)` opens a bundle or a work directory as a `Pipeline`. Importing this package imports no jax, so that
data-loader workers start quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from walt.generation.cascade import Cascade as Cascade
    from walt.generation.pipeline import Pipeline as Pipeline
    from walt.generation.pipeline import load as load

__version__ = "0.1.0"

_LAZY = {
    "Cascade": "walt.generation.cascade",
    "load": "walt.generation.pipeline",
    "Pipeline": "walt.generation.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'walt' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
