"""What a model has to offer to be trained, and what may watch it being trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np

if TYPE_CHECKING:
    from walt.training.state import TrainState

Tree = dict[str, Any]
Batch = Mapping[str, Any]


class Share(NamedTuple):
    """A metric of a part of a batch that differs from batch to batch: a sum, and of how many; their means weigh accordingly."""

    total: jax.Array
    number: jax.Array


@dataclass(frozen=True)
class RowCost:
    """What one batch row costs: tokens seen, and model FLOPs forward and backward (recomputation not counted)."""

    tokens: int
    flops: float


class Task(Protocol):
    """A model with its loss. Groups of parameters ("model", or "generator" and "discriminator") each have an optimiser
    of their own.

    Losses and metrics are means over the rows of a batch, each row with equal weight: only then does accumulation equal
    the full batch. Noise is drawn per row from `jax.random.fold_in(key, row)` with `batch["row"]`, so that it depends
    neither on accumulation nor on the number of hosts.
    """

    def init(self, key: jax.Array) -> tuple[dict[str, Tree], Tree]:
        """Fresh (params by group, extra). `extra` is whatever else the task carries from step to step."""
        ...

    def gradients(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Tree], Tree, dict[str, jax.Array]]:
        """(gradients by group, the next `extra`, scalar metrics). Metrics must hold "loss"; every name that ends in
        "loss" must stay finite.
        """
        ...

    def eval_step(
        self, params: dict[str, Tree], extra: Tree, batch: Batch, key: jax.Array
    ) -> Mapping[str, jax.Array | Share]:
        """Scalar metrics of a batch under any parameters (raw or averaged), without training."""
        ...

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every batch entry, without the row dimension."""
        ...

    def row_cost(self) -> RowCost:
        """The cost of one row of a training batch."""
        ...


class Loader(Protocol):
    """A source of batches whose order is a pure function of the step. It may also have `counts`, numbers for the log of the run, and
    `example_ids(step)`, for the list of batches that were left out.
    """

    def batches(self, start_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches of steps `start_step`, `start_step + 1`, … without end: this process's rows of each."""
        ...


class Evaluator(Protocol):
    """Looks at the state every `every` steps and at the end; must not keep the state, whose memory the next step
    reuses. A state is saved before one looks at it that `takes_long`: a run that is told to end then ends at once.
    """

    name: str
    every: int
    takes_long: bool

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        """Metrics by name: floats, or uint8 videos [N,T,H,W,3] that are shown in TensorBoard."""
        ...
