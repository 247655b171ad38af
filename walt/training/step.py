"""One optimiser step: the only place for accumulation, clipping, the finite check, the update, the moving average and
norms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from walt.parallel.mesh import batch_sharding, replicated
from walt.parallel.rules import ParameterAxes
from walt.parallel.tpu import compiler_options
from walt.training.config import TrainingConfig
from walt.training.optimizer import make_optimizer
from walt.training.state import TrainState, abstract_state
from walt.training.task import Batch, Task, Tree

Metrics = dict[str, Any]


def make_train_step(task: Task, config: TrainingConfig, mesh: Mesh, axes: ParameterAxes = ()) -> Any:
    """The jitted `(state, batch, learning_rate) -> (state, metrics)`; the memory of the given state is reused for the new
    one.

    When a gradient of any group or any loss is not finite, nothing but `step` changes, and the metric "skipped" is 1. Where spikes of
    the loss are to be skipped as well, there is a fourth argument, the largest loss that is none.
    """
    optimizer = make_optimizer(config.optimizer)
    scalars = 2 if config.anomalies.spike == "skip" else 1

    def train_step(
        state: TrainState, batch: Batch, learning_rate: Float[Array, ""], loss_limit: Float[Array, ""] | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        grads, extra, metrics = accumulated_gradients(task, state, batch, key, config.accumulation, mesh)
        norms = {group: optax.tree.norm(tree) for group, tree in grads.items()}
        good = all_finite([*norms.values(), *(value for name, value in metrics.items() if name.endswith("loss"))])
        if loss_limit is not None:
            good &= metrics["loss"] <= loss_limit

        with jax.named_scope("optimizer"):
            params, opt, updates = {}, {}, {}
            for group, tree in grads.items():
                clipped = clip(tree, norms[group], config.clip_norm)
                direction, opt[group] = optimizer.update(clipped, state.opt[group], state.params[group])
                updates[group] = jax.tree.map(lambda d: jnp.where(good, -learning_rate * d, 0.0), direction)
                params[group] = optax.apply_updates(state.params[group], updates[group])
            ema = {
                group: averaged(tree, params[group], state.step, config.ema_decay) for group, tree in state.ema.items()
            }

            new, old = (params, opt, ema, extra), (state.params, state.opt, state.ema, state.extra)
            params, opt, ema, extra = jax.tree.map(lambda after, before: jnp.where(good, after, before), new, old)
        metrics |= group_norms("l2_grads", norms)
        metrics |= group_norms("l2_params", {group: optax.tree.norm(tree) for group, tree in params.items()})
        metrics |= group_norms("l2_updates", {group: optax.tree.norm(tree) for group, tree in updates.items()})
        metrics |= {"learning_rate": learning_rate, "skipped": 1.0 - good}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, opt, ema, extra, state.key), metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, config, mesh, axes))
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh), *[replicated(mesh)] * scalars),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, on_sparse_cores=config.collectives_on_sparse_cores),
    )


def accumulated_gradients(
    task: Task, state: TrainState, batch: Batch, key: jax.Array, parts: int, mesh: Mesh
) -> tuple[dict[str, Tree], Tree, Metrics]:
    """What `task.gradients` gives for the whole batch, computed in `parts` parts one after another and averaged.

    Equal to the full batch because tasks average over rows. `extra` is averaged too, which is exact for moving averages
    of batch means and for what stays as it is; entries that are no floating-point numbers are taken from the last part.
    """
    if parts == 1:
        return task.gradients(state, batch, key)

    def split(rows: Array) -> Array:
        # Part p takes rows p, p + parts, …: every device keeps its own rows, no data moves.
        divided = jnp.moveaxis(rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]), 1, 0)
        spec = jax.sharding.PartitionSpec(None, *batch_sharding(mesh).spec)
        return jax.lax.with_sharding_constraint(divided, jax.sharding.NamedSharding(mesh, spec))

    def add(total: Any, part: Any) -> Any:
        return jax.tree.map(lambda a, b: a + b / parts if is_float(b) else b, total, part)

    # The parts of an `extra` that stays the same would not add up to it: what is averaged is how far it falls, exactly 0.
    def fall(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda a, b: a - b if is_float(b) else b, old, new)

    def gradients(rows: Batch) -> tuple[dict[str, Tree], Tree, Metrics]:
        grads, extra, metrics = task.gradients(state, rows, key)
        return grads, fall(state.extra, extra), metrics

    divided = {name: split(rows) for name, rows in batch.items()}
    first = jax.tree.map(lambda rows: rows[0], divided)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradients, first))
    (grads, fallen, metrics), _ = jax.lax.scan(lambda total, part: (add(total, gradients(part)), None), zeros, divided)
    return grads, fall(state.extra, fallen), metrics


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def all_finite(scalars: list[Any]) -> Bool[Array, ""]:
    """Whether every scalar is finite. A norm is finite only if all its entries are."""
    return jnp.all(jnp.isfinite(jnp.stack([jnp.asarray(scalar, jnp.float32) for scalar in scalars])))


def clip(grads: Tree, norm: Float[Array, ""], limit: float | None) -> Tree:
    """Gradients scaled to l2 norm `limit` if theirs is larger."""
    if limit is None:
        return grads
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)


def averaged(ema: Tree, params: Tree, step: Int[Array, ""], decay: float | None) -> Tree:
    """The moving average after update number `step` (from 0), with decay min(decay, (1+n)/(10+n)): short at first, so
    that it forgets the start.
    """
    assert decay is not None  # a state with averages comes from a config with a decay
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: rate * old + (1.0 - rate) * new, ema, params)


def group_norms(name: str, norms: dict[str, Any]) -> Metrics:
    """The l2 norm over all groups, and of each group if there are several."""
    total = {name: jnp.sqrt(sum(norm**2 for norm in norms.values()))}
    return total | ({f"{name}/{group}": norm for group, norm in norms.items()} if len(norms) > 1 else {})
