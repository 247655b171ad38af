"""A step run twice: hardware that computes wrongly without saying so gives other bits the second time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from walt.parallel.rules import path_name
from walt.training.state import TrainState


class SilentCorruptionError(RuntimeError):
    """The same step, on the same numbers, gave two results."""


@jax.jit
def copied(state: TrainState) -> TrainState:
    """The same numbers in memory of their own: a step reuses that of the state it is given."""
    return jax.tree.map(jnp.copy, state)


def require_same(step: int, first: TrainState, second: TrainState) -> None:
    """Raises `SilentCorruptionError` naming arrays of which a single bit differs."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(first)]
    differs = [name for name, found in zip(names, jax.device_get(_differing(first, second))) if found]
    if differs:
        raise SilentCorruptionError(
            f"step {step} was run twice on the same numbers and gave two results: {len(differs)} of {len(names)} arrays differ, such as "
            f"{', '.join(differs[:3])}. A device of this job computes wrongly, and what it computed before is in doubt; the last checkpoint is kept"
        )


@jax.jit
def _differing(first: TrainState, second: TrainState) -> Bool[Array, " arrays"]:
    return jnp.stack([jnp.any(_bits(a) != _bits(b)) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second))])


def _bits(array: Array) -> Array:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
