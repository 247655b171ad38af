"""A step run twice: hardware that computes wrongly without saying so gives other bits the second time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from walt.parallel.mesh import mesh_of
from walt.parallel.rules import path_name
from walt.training.state import TrainState


class SilentCorruptionError(RuntimeError):
    """The same step, on the same numbers, gave two results."""


@jax.jit
def copied(state: TrainState) -> TrainState:
    """The same numbers in memory of their own: a step reuses that of the state it is given."""
    return jax.tree.map(jnp.copy, state)


def require_same(step: int, first: TrainState, second: TrainState) -> None:
    """Raises `SilentCorruptionError`, in every process, naming arrays of which a single bit differs on any device: also where several hold
    the same array, and one of them another copy than the rest.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(first)]
    differs = [name for name, count in zip(names, jax.device_get(_differing(first, second))) if count]
    if differs:
        raise SilentCorruptionError(
            f"step {step} was run twice on the same numbers and gave two results: {len(differs)} of {len(names)} arrays differ, such as "
            f"{', '.join(differs[:3])}. A device of this job computes wrongly, and what it computed before is in doubt; the last checkpoint is kept"
        )


def _differing(first: TrainState, second: TrainState) -> Int[Array, " arrays"]:
    """On how many devices each array differs. Each looks at what it holds itself, for which alone this needs `shard_map`."""
    mesh, (a, b) = mesh_of(first.step), map(jax.tree.leaves, (first, second))
    specs = [leaf.sharding.spec for leaf in a]

    def compare(a: list[Array], b: list[Array]) -> Int[Array, " arrays"]:
        differing = [jnp.any(_bits(x) != _bits(y)) for x, y in zip(a, b)]
        return jax.lax.psum(jnp.stack(differing).astype(jnp.int32), mesh.axis_names)

    # Unchecked, else copies would be taken for equal without a look at them.
    shards = jax.shard_map(compare, mesh=mesh, in_specs=(specs, specs), out_specs=jax.P(), check_vma=False)
    return jax.jit(shards)(a, b)


def _bits(array: Array) -> Array:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(array)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    return jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
