"""Window attention as one TPU kernel: norms of queries and keys per head, scores, softmax and mixing, without leaving a core's memory.

A window is small: its tokens, their keys and the scores of a head lie in a core's vector memory together, so that nothing but queries, keys, values
and what is mixed moves to and from the chip's memory. Heads stay where the projections put them, side by side along the last axis. A head that does
not begin and end at a multiple of 128 lanes is masked inside the slab of whole lanes that holds it: no layout is ever changed, which took XLA longer
than attention itself.

The backward pass computes scores again from queries and keys. `walt.transformer.attention` holds the same mathematics in XLA's operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from walt.parallel import tpu
from walt.transformer.layers import NORM_EPSILON

LANES = 128
SUBLANES = 16  # of bfloat16
TEMPORARIES = 32  # arrays of one head's scores that the backward pass has at most at a time


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for: windows, queries and keys of each, width and its heads."""

    windows: int
    queries: int
    keys: int
    width: int
    heads: int
    norm: bool
    interpret: bool

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def cost(self, products: int, moved: int, itemsize: int) -> pl.CostEstimate:
        """Of so many products per head of scores' size, and so many arrays of tokens moved."""
        scores = self.windows * self.heads * self.queries * self.keys
        tokens = self.windows * (self.queries + self.keys) * self.width * itemsize
        passes = 1 if itemsize == 2 else 6  # of the matrix units, which multiply bfloat16, for a product of float32
        return pl.CostEstimate(
            flops=2 * products * passes * scores * self.head_width,
            transcendentals=scores,
            bytes_accessed=tokens * moved,
        )


class Tokens(NamedTuple):
    """What a window has of its own, `G` windows. `key` and `value` may come in parts (tokens, caption), one behind the other, as projected.

    `mask` is 1 where a key may be seen; `identity` is 1 for windows whose tokens see nothing but themselves: their value is what is mixed.
    """

    query: Float[Array, "G n d"]
    key: tuple[Float[Array, "G m d"], ...]
    value: tuple[Float[Array, "G m d"], ...]
    mask: Int[Array, "G 1 m"] | None = None
    identity: Int[Array, "G 1 1"] | None = None


class Shared(NamedTuple):
    """What all windows share: what is added to queries, keys and values, what queries are multiplied by after their norm (1/sqrt(head width)
    included), and what is added to scores."""

    offsets: tuple[Float[Array, "1 d"], Float[Array, "1 d"], Float[Array, "1 d"]]
    scale: Float[Array, "1 d"]
    bias: Float[Array, "heads n m"] | None = None


def supports(tokens: Tokens, shared: Shared, *, heads_over: int = 1, queries_over: int = 1) -> bool:
    """Whether a core of the TPU that is compiled for has the memory for such windows, backward pass included, with heads and queries divided over so
    many devices."""
    core, query = tpu.core(), tokens.query
    queries, parts = query.shape[-2] // queries_over, [part.shape[-2] for part in tokens.key]
    whole_tiles = not any(size % SUBLANES for size in (queries, *parts))
    if core is None or not whole_tiles or query.dtype not in (jnp.bfloat16, jnp.float32):
        return False
    scores = queries * -(-sum(parts) // LANES) * LANES * 4
    rows = (3 * queries + 4 * sum(parts)) * query.shape[-1] // heads_over * query.dtype.itemsize
    biases = 0 if shared.bias is None else 2 * len(shared.bias) // heads_over
    # Blocks of tokens are held twice, while the next is on its way; biases and their gradients once; TEMPORARIES were found by compiling.
    return 2 * rows + (biases + TEMPORARIES) * scores <= core.vmem_capacity_bytes


def attend_in_windows(
    tokens: Tokens, shared: Shared, *, heads: int, norm: bool, interpret: bool = False
) -> Float[Array, "G n d"]:
    """Dense attention within each of G windows, differentiable in all but mask and identity.

    Args:
        norm: whether queries and keys are normalised per head.
        interpret: run without a TPU, operation by operation (tests).
    """
    windows, queries, width = tokens.query.shape
    keys = sum(part.shape[1] for part in tokens.key)
    return _attend(Shape(windows, queries, keys, width, heads, norm, interpret), tokens, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape: Shape, tokens: Tokens, shared: Shared) -> Array:
    query = tokens.query
    return _call(
        _forward,
        shape,
        (tokens, shared),
        grid=(shape.windows,),
        outputs=jax.ShapeDtypeStruct(query.shape, query.dtype),
        sums=None,
        cost=shape.cost(2, 2, query.dtype.itemsize),
    )[0]


def _attend_forward(shape: Shape, tokens: Tokens, shared: Shared) -> tuple[Array, tuple[Tokens, Shared]]:
    return _attend(shape, tokens, shared), (tokens, shared)


def _attend_backward(shape: Shape, saved: tuple[Tokens, Shared], cotangent: Array) -> tuple[Tokens, Shared]:
    tokens, shared = saved
    core = tpu.core()
    parts = (
        core.num_cores if core is not None and shape.windows % core.num_cores == 0 else 1
    )  # each sums over its windows
    of_tokens, sums = _call(
        _backward,
        shape,
        (tokens, shared, cotangent),
        grid=(parts, shape.windows // parts),
        outputs=tokens._replace(mask=None, identity=None),
        sums=shared,
        cost=shape.cost(5, 4, tokens.query.dtype.itemsize),
    )
    return of_tokens, jax.tree.map(lambda total, x: total.sum(0).astype(x.dtype), sums, shared)


_attend.defvjp(_attend_forward, _attend_backward)


def _call(
    kernel: Callable[..., None],
    shape: Shape,
    inputs: tuple[Any, ...],
    *,
    grid: tuple[int, ...],
    outputs: Any,
    sums: Any,
    cost: pl.CostEstimate,
) -> tuple[Any, Any]:
    """`kernel(shape, inputs, outputs, sums)` on references, once per window.

    Of `inputs`, `Shared` is whole in every window; `outputs` have a block per window, `sums` one per place of the grid's first dimension, over
    whose windows the kernel adds them up.
    """

    def window(*place: Any) -> tuple[Any, int, int]:
        return place[0] if len(grid) == 1 else place[0] * grid[1] + place[1], 0, 0

    def specs(tree: Any) -> Any:
        if isinstance(tree, Shared):
            return jax.tree.map(
                lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim, pipeline_mode=pl.Buffered(1)), tree
            )
        return jax.tree.map(lambda x: pl.BlockSpec((1, *x.shape[1:]), window), tree)

    summed = jax.tree.map(lambda x: jax.ShapeDtypeStruct((grid[0], *x.shape), jnp.float32), sums)
    sum_specs = jax.tree.map(
        lambda x: pl.BlockSpec((1, *x.shape), lambda part, _: (part, *(0,) * x.ndim), pipeline_mode=pl.Buffered(1)),
        sums,
    )
    leaves, structure = jax.tree.flatten(inputs)
    made = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), outputs), summed
    made_leaves, made_structure = jax.tree.flatten(made)

    def body(*refs: Any) -> None:
        given, given_back = jax.tree.unflatten(structure, refs[: len(leaves)]), refs[len(leaves) :]
        kernel(shape, *given, *jax.tree.unflatten(made_structure, given_back))

    core, semantics = tpu.core(), ("parallel", "arbitrary")
    found = pl.pallas_call(
        body,
        out_shape=made_leaves,
        grid=grid,
        in_specs=jax.tree.leaves(tuple(specs(tree) for tree in inputs)),
        out_specs=jax.tree.leaves((specs(outputs), sum_specs)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics[: len(grid)],  # type: ignore[arg-type]
            vmem_limit_bytes=core and core.vmem_capacity_bytes,
        ),
        cost_estimate=cost,
        interpret=shape.interpret,
        name="window_attention" + kernel.__name__,
    )(*leaves)
    return jax.tree.unflatten(made_structure, found)


class _Head:
    """A head's place along the last axis: a slab of whole lanes, and which of them are its own."""

    def __init__(self, shape: Shape, head: int):
        self.width = shape.head_width
        first, last = head * self.width, (head + 1) * self.width
        start, stop = first // LANES * LANES, min(-(-last // LANES) * LANES, shape.width)
        self.slab = slice(start, stop)
        self.whole = (start, stop) == (first, last)
        self.first, self.last = first - start, last - start

    def own(self, x: Array) -> Array:
        """`x` with zeros in the lanes of other heads."""
        return x if self.whole else jnp.where(self._mine(x), x, jnp.zeros_like(x))

    def read(self, refs: Sequence[Any], offset: Any) -> Array:
        """Parts one behind the other, with what is added to them."""
        parts = [ref[0, :, self.slab] for ref in refs]
        return (parts[0] if len(parts) == 1 else jnp.concatenate(parts)) + offset[:, self.slab].astype(parts[0].dtype)

    def write(self, refs: Sequence[Any], x: Array) -> None:
        """Other lanes of the slab keep what they hold: their own heads write all of them in turn."""
        first = 0
        for ref in refs:
            part, first = x[first : first + ref.shape[1]].astype(ref.dtype), first + ref.shape[1]
            ref[0, :, self.slab] = part if self.whole else jnp.where(self._mine(part), part, ref[0, :, self.slab])

    def add(self, ref: Any, x: Array) -> None:
        """The sum of the rows of `x`."""
        ref[0, :, self.slab] += jnp.sum(self.own(x), axis=0, keepdims=True)

    def mean(self, x: Array) -> Array:
        """Over the head's lanes, the others being zero."""
        return jnp.sum(x, axis=-1, keepdims=True) / self.width

    def _mine(self, x: Array) -> Array:
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        return (lane >= self.first) & (lane < self.last)

    def normalised(self, x: Array, norm: bool) -> tuple[Array, Array]:
        """LayerNorm of this head (its input, where there is no norm), and the reciprocal deviation."""
        x = self.own(x.astype(jnp.float32))
        if not norm:
            return x, jnp.ones((x.shape[0], 1), jnp.float32)
        centred = self.own(x - self.mean(x))
        inverse = jax.lax.rsqrt(self.mean(jnp.square(centred)) + NORM_EPSILON)
        return centred * inverse, inverse

    def through_norm(self, gradient: Array, normal: Array, inverse: Array, norm: bool) -> Array:
        """The gradient of the norm's input, from that of its output."""
        if not norm:
            return gradient
        gradient = self.own(gradient)
        return inverse * (gradient - self.mean(gradient) - normal * self.mean(gradient * normal))


def _product(a: Array, b: Array, contracting: tuple[int, int]) -> Array:
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((contracting[0],), (contracting[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, precision=exact, preferred_element_type=jnp.float32)


def _weights(tokens: Tokens, shared: Shared, head: int, query: Array, key: Array) -> tuple[Array, Array]:
    """exp(scores - largest), rounded as it mixes values, and its sum over keys."""
    scores = _product(query, key, (1, 1))
    if shared.bias is not None:
        scores = scores + shared.bias[head].astype(jnp.float32)
    if tokens.mask is not None:
        scores = jnp.where(tokens.mask[0] > 0, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True)).astype(key.dtype)
    return weights, weights.astype(jnp.float32).sum(-1, keepdims=True)


def _forward(shape: Shape, tokens: Tokens, shared: Shared, mixed: Any, sums: None) -> None:
    dtype = tokens.query.dtype
    for index in range(shape.heads):
        head = _Head(shape, index)
        query, _ = head.normalised(head.read([tokens.query], shared.offsets[0]), shape.norm)
        key, _ = head.normalised(head.read(tokens.key, shared.offsets[1]), shape.norm)
        value = head.read(tokens.value, shared.offsets[2])
        query = query * shared.scale[:, head.slab]
        weights, total = _weights(tokens, shared, index, query.astype(dtype), key.astype(dtype))
        result = _product(weights, value, (1, 0)) / total
        if tokens.identity is not None:
            result = jnp.where(tokens.identity[0] > 0, value.astype(result.dtype), result)
        head.write([mixed], result)


def _backward(shape: Shape, tokens: Tokens, shared: Shared, cotangents: Any, of: Tokens, sums: Shared) -> None:
    dtype = tokens.query.dtype

    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        for ref in jax.tree.leaves(sums):
            ref[...] = jnp.zeros_like(ref)

    for index in range(shape.heads):
        head = _Head(shape, index)
        normal, query_inverse = head.normalised(head.read([tokens.query], shared.offsets[0]), shape.norm)
        key, key_inverse = head.normalised(head.read(tokens.key, shared.offsets[1]), shape.norm)
        value, scale = head.read(tokens.value, shared.offsets[2]), shared.scale[:, head.slab]
        query = (normal * scale).astype(dtype)
        cotangent = past = head.own(cotangents[0, :, head.slab])
        if tokens.identity is not None:
            cotangent = jnp.where(tokens.identity[0] > 0, jnp.zeros_like(past), past)
        weights, total = _weights(tokens, shared, index, query, key.astype(dtype))
        weights = weights.astype(jnp.float32) / total
        of_weights = _product(cotangent, value, (1, 1))
        of_scores = weights * (of_weights - jnp.sum(weights * of_weights, axis=-1, keepdims=True))
        if sums.bias is not None:
            sums.bias[0, index] += of_scores
        of_scores = of_scores.astype(dtype)
        of_normal = head.own(_product(of_scores, key.astype(dtype), (1, 0)))
        of_query = head.through_norm(of_normal * scale, normal, query_inverse, shape.norm)
        of_key = head.through_norm(_product(of_scores, query, (0, 0)), key, key_inverse, shape.norm)
        of_value = _product(weights.astype(dtype), cotangent, (0, 0))
        if tokens.identity is not None:
            of_value = of_value + (past - cotangent).astype(of_value.dtype)
        head.add(sums.scale, of_normal * normal)
        for total_of, gradient, refs in zip(sums.offsets, (of_query, of_key, of_value), ([of.query], of.key, of.value)):
            head.add(total_of, gradient)
            head.write(refs, gradient)
