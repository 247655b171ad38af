"""Passes that are answered from the one before: the first unit is always computed, and tells whether the others would say anything new.

Between neighbouring steps of a sampler the residual stream changes little. Where what the first unit adds to it has hardly changed since the last full
pass, what all other units added then is added again. (DeepCache, arXiv 2312.00858, reuses by a fixed plan; here an error decides, for every video by itself.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Kept(NamedTuple):
    """Of the last full pass of every row: what was added to its residual stream; zeros are no pass at all.

    Attributes:
      first: by the first unit.
      others: by all others together.
    """

    first: Float[Array, "B ..."]
    others: Float[Array, "B ..."]


class Reuse(NamedTuple):
    """What a pass may take from the one before.

    Attributes:
      kept: of that one; None for none, and then all is computed, and kept for the next.
      tolerance: mean absolute change of what the first unit adds, relative to its mean size, up to which nothing else is computed.
      video: the number of the video that each row belongs to; its rows, such as guidance makes, are computed anew together.
    """

    kept: Kept | None
    tolerance: float
    video: Int[Array, " B"]


def run_reusing(
    reuse: Reuse, x: Array, first: Callable[[Array], Array], others: Callable[[Array], Array]
) -> tuple[Array, Kept]:
    """`others(first(x))`, or what is near it, and what is kept for the next pass.

    A row's result depends on the rows of its own video alone; time is saved when no video of the batch is computed anew.
    """
    kept, y = reuse.kept, first(x)
    added = y - x
    if kept is None:
        z = others(y)
        return z, Kept(added, z - y)
    axes = tuple(range(1, x.ndim))
    size = lambda array: jnp.abs(array.astype(jnp.float32)).mean(axes)  # noqa: E731
    # Written so that nothing kept, and anything that is no number, counts as a change.
    stale = ~(size(added - kept.first) <= reuse.tolerance * size(kept.first)) | (size(kept.first) == 0)
    stale = jax.ops.segment_max(stale.astype(jnp.int32), reuse.video, num_segments=x.shape[0])[reuse.video] > 0
    where = stale.reshape(-1, *(1 for _ in axes))

    def anew() -> tuple[Array, Array]:
        z = others(y)
        return jnp.where(where, z, y + kept.others), jnp.where(where, z - y, kept.others)

    z, still = jax.lax.cond(stale.any(), anew, lambda: (y + kept.others, kept.others))
    return z, Kept(jnp.where(where, added, kept.first), still)
