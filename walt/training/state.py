"""Everything a training run carries from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from walt.config import ConfigError
from walt.parallel.mesh import replicated
from walt.parallel.rules import ParameterAxes, parameter_shardings, path_name
from walt.training.config import TrainingConfig
from walt.training.optimizer import decayed, make_optimizer
from walt.training.task import Task, Tree

RUN_ONCE = {"cpu": {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}}
"""Compiler options, by platform, for a program that runs once: on a CPU it takes longer to optimise its many small draws
than to draw (mini autoencoder, two cores: 15 s against 5 s)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree of nested dicts of plain arrays. `step` counts the batches consumed, so it is also the position in the
    data.

    `ema` has the groups of `params` that have a moving average; `key` never changes: step n draws from `fold_in(key,
    n)`.
    """

    step: Int[Array, ""]
    params: dict[str, Tree]
    opt: dict[str, Any]
    ema: dict[str, Tree]
    extra: Tree
    key: Key[Array, ""]

    def averaged_params(self) -> dict[str, Tree]:
        """The parameters to evaluate with: the moving average of every group that has one."""
        return {**self.params, **self.ema}


@dataclass(frozen=True)
class Initial:
    """What a fresh run starts from instead of its own draw.

    `params` by group: an entry that is a `jax.ShapeDtypeStruct` keeps its fresh value. `extra`: None keeps the task's.
    """

    params: Mapping[str, Tree] = field(default_factory=dict)
    extra: Tree | None = None


def init_state(task: Task, config: TrainingConfig) -> TrainState:
    """The state before the first step; a pure function, to be run under `jax.jit` (see `create_state`)."""
    params, extra = task.init(jax.random.fold_in(jax.random.key(config.seed), 0))
    optimizer = make_optimizer(config.optimizer)
    if config.optimizer.weight_decay and not any(jax.tree.leaves(decayed(config.optimizer, params))):
        raise ConfigError(
            f"optimizer.weight_decay is {config.optimizer.weight_decay}, but no parameter's path ends in "
            f"optimizer.decay_pattern = {config.optimizer.decay_pattern!r}"
        )
    averaged = [group for group in params if config.ema_decay is not None and group not in config.ema_excluded]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt={group: optimizer.init(tree) for group, tree in params.items()},
        ema={group: jax.tree.map(jnp.copy, params[group]) for group in averaged},
        extra=extra,
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
    )


def abstract_state(task: Task, config: TrainingConfig, mesh: Mesh, axes: ParameterAxes = ()) -> TrainState:
    """The state's shapes, dtypes and shardings, as `jax.ShapeDtypeStruct`s; nothing is computed or allocated."""
    shapes = jax.eval_shape(lambda: init_state(task, config))
    params = parameter_shardings(shapes.params, mesh, axes)
    whole = replicated(mesh)
    optimizer = make_optimizer(config.optimizer)

    def like_parameter(leaf: Any, parameter: Any, sharding: Any) -> Any:
        return sharding if leaf.shape == parameter.shape else whole  # factored moments are small

    opt = {
        group: optax.tree_utils.tree_map_params(
            optimizer, like_parameter, state, shapes.params[group], params[group], transform_non_params=lambda _: whole
        )
        for group, state in shapes.opt.items()
    }
    shardings = replace(
        jax.tree.map(lambda _: whole, shapes),
        params=params,
        opt=opt,
        ema={group: params[group] for group in shapes.ema},
        extra=parameter_shardings(shapes.extra, mesh, axes),  # frozen networks are as large as trained ones
    )
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, shardings)


def create_state(
    task: Task,
    config: TrainingConfig,
    mesh: Mesh,
    axes: ParameterAxes = (),
    initial: Initial | None = None,
) -> TrainState:
    """A fresh state whose arrays are created where they belong: no device ever holds a whole sharded model.

    What `initial` gives takes the place of fresh values, in moving averages too; a tree of another structure or shape
    raises `ConfigError`.
    """
    abstract = abstract_state(task, config, mesh, axes)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    with jax.set_mesh(mesh):
        options = RUN_ONCE.get(mesh.devices.flat[0].platform)
        state = jax.jit(lambda: init_state(task, config), out_shardings=shardings, compiler_options=options)()
    initial = initial or Initial()
    for group, values in initial.params.items():
        if group not in state.params:
            raise ConfigError(f"initial parameters for group {group!r}, but the task has {', '.join(state.params)}")
        placed = place(values, state.params[group], f"initial parameters of {group!r}")
        state = replace(state, params={**state.params, group: placed})
        if group in state.ema:
            state = replace(state, ema={**state.ema, group: jax.tree.map(jnp.copy, placed)})
    if initial.extra is not None:
        state = replace(state, extra=place(initial.extra, state.extra, "initial extra"))
    return state


def place(values: Any, fresh: Any, what: str) -> Any:
    """`values` on the devices and in the dtypes of `fresh`, which fills in where `values` has only a shape;
    `ConfigError` naming the first entry that does not fit.
    """
    given = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(values)}
    expected = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(fresh)}
    for name in sorted(given.keys() ^ expected.keys()):
        raise ConfigError(f"{what}: {name} is {'missing' if name in expected else 'not a parameter of this model'}")
    for name, leaf in expected.items():
        if given[name].shape != leaf.shape:
            raise ConfigError(f"{what}: {name} has shape {given[name].shape}, the model expects {leaf.shape}")
    # A copy in any case: the loop donates its state, and the caller keeps its own arrays.
    placed = [
        leaf
        if isinstance(given[name], jax.ShapeDtypeStruct)
        else jax.device_put(np.array(given[name], leaf.dtype), leaf.sharding)
        for name, leaf in expected.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(fresh), placed)
