"""Stacks of equal blocks: initialised by vmap over keys, run by one scan, so that compile time does not grow with depth.

Every backbone goes through these two functions. A stack is an ordinary NNX module whose parameters carry a leading layer axis; names stay those of one block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array

M = TypeVar("M", bound=nnx.Module)

_policies = jax.checkpoint_policies
_products = _policies.dots_with_no_batch_dims_saveable
REMAT: dict[str, Callable[..., Any] | None] = {
    "none": _policies.everything_saveable,
    "full": _policies.nothing_saveable,
    "dots": _products,
    "attention": _policies.save_from_both_policies(_products, _policies.save_only_these_names("attention")),
    "offload": _policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}
"""What is kept for the backward pass, by name; it computes the rest again. See `TransformerConfig.remat`."""


def init_stack(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` independently initialised copies of `make(rngs)` as one module with stacked parameters."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    states = jax.vmap(lambda key: nnx.split(make(nnx.Rngs(key)))[1])(jax.random.split(rngs.params(), count))
    return nnx.merge(graph, states)


def part_of_stack(stack: M, start: int, stop: int | None = None) -> M:
    """The blocks from `start` up to `stop` of a stack, as one."""
    graph, states = nnx.split(stack)
    return nnx.merge(graph, jax.tree.map(lambda array: array[start:stop], states))


def run_stack(
    stack: nnx.Module, x: Array, context: Any, *, remat: str = "none", skips: Array | None = None, keep: bool = False
) -> tuple[Array, Array | None]:
    """Applies the stacked blocks in order, `x = block(x, context)`; returns the last x and, with `keep`, stacked what each block gave.

    Args:
        context: any pytree of arrays that all blocks see.
        remat: one of REMAT.
        skips: what a stack before this one gave: its last output is a third argument of the first block here, and so on inwards out (U-ViT).
    """
    graph, states = nnx.split(stack)

    def apply(x: Array, state: Any, context: Any, skip: Array | None) -> Array:
        block: Any = nnx.merge(graph, state)
        return block(x, context) if skip is None else block(x, context, skip)

    if remat != "none":
        # Inside a scan XLA cannot merge the recomputation with the original, so no barrier is needed against it.
        apply = jax.checkpoint(apply, policy=REMAT[remat], prevent_cse=False)

    def advance(x: Array, each: tuple[Any, Array | None]) -> tuple[Array, Array | None]:
        state, skip = each
        x = apply(x, state, context, skip)
        return x, x if keep else None

    return jax.lax.scan(advance, x, (states, None if skips is None else skips[::-1]))
