"""NNX modules as pure functions of nested dicts of plain arrays.

The rest of the program never holds a live module across a transformation: it holds `params` and `extra`, two nested dicts of arrays, and binds them to the
module's structure where a forward pass is written. Checkpoints, bundles, shardings and optimisers therefore see plain dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from walt.training.task import Tree

M = TypeVar("M", bound=nnx.Module)


class Functional(Generic[M]):
    """The structure of a module, apart from its arrays.

    `make(rngs)` builds the module. `params` are its `nnx.Param` leaves; `extra` is every other variable (statistics that no optimiser may touch).
    """

    def __init__(self, make: Callable[[nnx.Rngs], M]):
        self._make = make
        graph, params, extra = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        self._graph, self._params_state, self._extra_state = graph, params, extra
        self.abstract_params = _string_keys(nnx.to_pure_dict(params))
        self.abstract_extra = _string_keys(nnx.to_pure_dict(extra))

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh (params, extra) for a key; safe under `jax.jit` with `out_shardings`."""
        _, params, extra = _split(self._make(nnx.Rngs(key)))
        return _string_keys(nnx.to_pure_dict(params)), _string_keys(nnx.to_pure_dict(extra))

    def bind(self, params: Tree, extra: Tree | None = None) -> M:
        """The module with these arrays; a missing or extra entry raises `ValueError`."""
        return nnx.merge(self._graph, _filled(self._params_state, params), _filled(self._extra_state, extra or {}))


def _split(module: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
    """(structure, parameters, everything else)."""
    graph, params, extra = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    return graph, params, extra


def _string_keys(tree: Any) -> Any:
    """NNX lists have integer keys; checkpoints and safetensors want strings."""
    return {str(name): _string_keys(child) for name, child in tree.items()} if isinstance(tree, dict) else tree


def _filled(state: nnx.State, values: Tree) -> nnx.State:
    template = nnx.to_pure_dict(state)
    expected, given = jax.tree.structure(_string_keys(template)), jax.tree.structure(values)
    if str(expected) != str(given):
        raise ValueError(f"parameter tree does not fit the module: expected {expected}, got {given}")

    def native_keys(shape: Any, tree: Any) -> Any:
        return {name: native_keys(shape[name], tree[str(name)]) for name in shape} if isinstance(shape, dict) else tree

    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, native_keys(template, values))
    return filled


def count_parameters(tree: Tree) -> int:
    """Number of scalars in a (possibly abstract) tree."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))
