"""The loss on data the model never trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import jax
import numpy as np

from walt.parallel.mesh import mesh_of, put_batch
from walt.training.state import TrainState
from walt.training.task import Loader, Share, Task


@dataclass
class HeldOut:
    """An `Evaluator`: means of `task.eval_step` over the first `num_batches` batches of `loader`, with averaged parameters.

    Metrics of a batch weigh alike, those of a `Share` of it by its size; one of nothing is left out. The batches and the noise are
    the same every time, so that the curve shows the model and not the draw.
    """

    task: Task
    loader: Loader
    every: int
    num_batches: int = 4
    name: str = "heldout"
    takes_long: bool = False
    _run: Callable[..., Mapping[str, jax.Array | Share]] | None = field(default=None, init=False, repr=False)

    def __call__(self, state: TrainState, step: int) -> dict[str, Any]:
        if self._run is None:
            self._run = jax.jit(self.task.eval_step)
        key, mesh = jax.random.fold_in(state.key, 2**31 - 1), mesh_of(state.step)
        sums: dict[str, np.ndarray] = {}  # totals and numbers
        for index, rows in enumerate(islice(self.loader.batches(0), self.num_batches)):
            metrics = self._run(
                state.averaged_params(), state.extra, put_batch(rows, mesh), jax.random.fold_in(key, index)
            )
            for name, value in metrics.items():
                share = value if isinstance(value, Share) else (value, 1)
                sums[name] = sums.get(name, np.zeros(2)) + np.array([float(part) for part in share])
        return {name: float(total / number) for name, (total, number) in sums.items() if number}
