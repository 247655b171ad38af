"""Window attention as one TPU kernel: norms of queries and keys per head, scores, softmax and mixing, without leaving a core's memory.

A window is small: its tokens, their keys and the scores of a head lie in a core's vector memory together, so that nothing but queries, keys, values
and what is mixed moves to and from the chip's memory. Tokens stay in their grid, of which a window is a block, and heads where the projections put
them, side by side along the last axis. A head that does not begin and end at a multiple of 128 lanes is masked inside the slab of whole lanes that
holds it: no layout is ever changed, which took XLA longer than attention itself.

The backward pass computes scores again from queries and keys. `walt.transformer.attention` holds the same mathematics in XLA's operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from walt.parallel import tpu
from walt.transformer.layers import NORM_EPSILON
from walt.transformer.windows import Windows

LANES = 128
SUBLANES = 16  # of bfloat16
TEMPORARIES = 32  # arrays of one head's scores that the backward pass has at most at a time


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for: rows, how the tokens of each are cut into windows, tokens of a caption, width and its heads."""

    rows: int
    windows: Windows
    caption: int
    width: int
    heads: int
    norm: bool
    interpret: bool

    @property
    def number(self) -> int:
        """Of windows, of all rows together."""
        return self.rows * self.windows.number

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def cost(self, products: int, moved: int, itemsize: int) -> pl.CostEstimate:
        """Of so many products per head of scores' size, and so many arrays of tokens moved."""
        tokens = self.windows.tokens
        scores = self.number * self.heads * tokens * (tokens + self.caption)
        passes = 1 if itemsize == 2 else 6  # of the matrix units, which multiply bfloat16, for a product of float32
        return pl.CostEstimate(
            flops=2 * products * passes * scores * self.head_width,
            transcendentals=scores,
            bytes_accessed=self.number * (2 * tokens + self.caption) * self.width * itemsize * moved,
        )


class Tokens(NamedTuple):
    """What rows have of their own.

    Attributes:
      own: query, key and value of every token, side by side, in the grid of the tokens.
      caption: keys and values of words, side by side; `G` is 1, or T where every frame has its own.
      mask: 1 where a key may be seen (tokens of the window, then words).
      identity: 1 for rows whose tokens see nothing but themselves: their value is what is mixed.
    """

    own: Float[Array, "B T H W 3d"]
    caption: Float[Array, "B G l 2d"] | None = None
    mask: Int[Array, "B windows 1 m"] | None = None
    identity: Int[Array, "B 1 1"] | None = None


class Shared(NamedTuple):
    """What all windows share: what is added to queries, keys and values, what queries are multiplied by after their norm (1/sqrt(head width)
    included), and what is added to scores."""

    offsets: tuple[Float[Array, "1 d"], Float[Array, "1 d"], Float[Array, "1 d"]]
    scale: Float[Array, "1 d"]
    bias: Float[Array, "heads n m"] | None = None


def supports(tokens: Tokens, bias: Array | None, windows: Windows, *, heads_over: int = 1) -> bool:
    """Whether a core of the TPU that is compiled for has the memory for such windows, backward pass included, with heads divided over so many devices;
    and whether windows and words are whole tiles and the width whole slabs of 128 lanes, so that nothing has to be laid out anew."""
    core, dtype, width = tpu.core(), tokens.own.dtype, tokens.own.shape[-1] // 3 // heads_over
    if core is None or dtype not in (jnp.bfloat16, jnp.float32) or any(windows.padding):
        return False
    queries, words = windows.tokens, 0 if tokens.caption is None else tokens.caption.shape[2]
    if windows.window[2] % core.get_sublane_tiling(dtype) or queries % SUBLANES or words % SUBLANES or width % LANES:
        return False
    scores = queries * -(-(queries + words) // LANES) * LANES * 4
    rows = (7 * queries + 4 * words) * width * dtype.itemsize
    biases = 0 if bias is None else 2 * len(bias) // heads_over
    # Blocks of tokens are held twice, while the next is on its way; biases and their gradients once; TEMPORARIES were found by compiling.
    return 2 * rows + (biases + TEMPORARIES) * scores <= core.vmem_capacity_bytes


def attend_in_windows(
    tokens: Tokens, shared: Shared, windows: Windows, *, heads: int, norm: bool, interpret: bool = False
) -> Float[Array, "B T H W d"]:
    """Dense attention within each window, differentiable in all but mask and identity.

    Args:
        windows: of the grid of the tokens, which they divide, in widths of a multiple of 8 (16 tokens, and 16 words) as `supports` says.
        norm: whether queries and keys are normalised per head.
        interpret: run without a TPU, operation by operation (tests).
    """
    words = 0 if tokens.caption is None else tokens.caption.shape[2]
    shape = Shape(len(tokens.own), windows, words, tokens.own.shape[-1] // 3, heads, norm, interpret)
    return _attend(shape, tokens, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape: Shape, tokens: Tokens, shared: Shared) -> Array:
    own = tokens.own
    return _call(
        _forward,
        shape,
        (tokens, shared),
        grid=(shape.number,),
        outputs=Tokens(jax.ShapeDtypeStruct((*own.shape[:-1], shape.width), own.dtype)),  # type: ignore[arg-type]
        sums=None,
        cost=shape.cost(2, 2, own.dtype.itemsize),
    )[0].own


def _attend_forward(shape: Shape, tokens: Tokens, shared: Shared) -> tuple[Array, tuple[Tokens, Shared]]:
    return _attend(shape, tokens, shared), (tokens, shared)


def _attend_backward(shape: Shape, saved: tuple[Tokens, Shared], cotangent: Array) -> tuple[Tokens, Shared]:
    tokens, shared = saved
    core, caption = tpu.core(), tokens.caption
    # Each core sums over its windows.
    parts = core.num_cores if core is not None and shape.number % core.num_cores == 0 else 1
    of_caption = None
    if caption is not None:
        of_caption = jax.ShapeDtypeStruct((shape.rows, shape.windows.number, *caption.shape[2:]), caption.dtype)
    found, sums = _call(
        _backward,
        shape,
        (tokens, shared, Tokens(cotangent)),
        grid=(parts, shape.number // parts),
        outputs=Tokens(jax.ShapeDtypeStruct(tokens.own.shape, tokens.own.dtype), of_caption),  # type: ignore[arg-type]
        sums=shared,
        cost=shape.cost(5, 4, tokens.own.dtype.itemsize),
    )
    if caption is not None:
        found = found._replace(caption=_of_captions(shape.windows, found.caption, caption.shape[1]))
    return found, jax.tree.map(lambda total, x: total.sum(0).astype(x.dtype), sums, shared)


_attend.defvjp(_attend_forward, _attend_backward)


def _of_captions(windows: Windows, x: Float[Array, "B windows l d"], captions: int) -> Float[Array, "B G l d"]:
    """What windows give to captions, summed over those that read the same one."""
    nt, nh, nw = windows.counts
    by_frame = x.reshape(len(x), nh, nt, nw, *x.shape[2:])
    axes = (1, 3) if captions == nt else (1, 2, 3)
    return by_frame.sum(axes, dtype=jnp.float32).astype(x.dtype).reshape(len(x), captions, *x.shape[2:])


def _call(
    kernel: Callable[..., None],
    shape: Shape,
    inputs: tuple[Any, ...],
    *,
    grid: tuple[int, ...],
    outputs: Tokens,
    sums: Shared | None,
    cost: pl.CostEstimate,
) -> tuple[Any, Any]:
    """`kernel(shape, inputs, outputs, sums)` on references, once per window.

    Of `inputs`, `Shared` is whole in every window; `outputs` have a block per window, `sums` one per place of the grid's first dimension, over
    whose windows the kernel adds them up.
    """

    def specs(tree: Any, *, written: bool = False) -> Any:
        if isinstance(tree, Shared):
            return jax.tree.map(
                lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim, pipeline_mode=pl.Buffered(1)), tree
            )
        return _blocks(shape, tree, grid, written)

    summed = jax.tree.map(lambda x: jax.ShapeDtypeStruct((grid[0], *x.shape), jnp.float32), sums)
    sum_specs = jax.tree.map(
        lambda x: pl.BlockSpec((1, *x.shape), lambda part, _: (part, *(0,) * x.ndim), pipeline_mode=pl.Buffered(1)),
        sums,
    )
    leaves, structure = jax.tree.flatten(inputs)
    made_leaves, made_structure = jax.tree.flatten((outputs, summed))

    def body(*refs: Any) -> None:
        given, given_back = jax.tree.unflatten(structure, refs[: len(leaves)]), refs[len(leaves) :]
        kernel(shape, *given, *jax.tree.unflatten(made_structure, given_back))

    core, semantics = tpu.core(), ("parallel", "arbitrary")
    found = pl.pallas_call(
        body,
        out_shape=made_leaves,
        grid=grid,
        in_specs=jax.tree.leaves(tuple(specs(tree) for tree in inputs)),
        out_specs=jax.tree.leaves((specs(outputs, written=True), sum_specs)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=semantics[: len(grid)],  # type: ignore[arg-type]
            vmem_limit_bytes=core and core.vmem_capacity_bytes,
        ),
        cost_estimate=cost,
        interpret=shape.interpret,
        name="window_attention" + kernel.__name__,
    )(*leaves)
    return jax.tree.unflatten(made_structure, found)


def _blocks(shape: Shape, tokens: Tokens, grid: tuple[int, ...], written: bool) -> Tokens:
    """The block of every window: of the tokens themselves, where they lie in their grid; of the caption of its frame, or, where it is `written`, of its own."""
    windows = shape.windows

    def place(*index: Any) -> tuple[Any, Any, tuple[Any, Any, Any]]:
        """Row and window, and the window's place along time, height and width."""
        each = index[0] if len(grid) == 1 else index[0] * grid[1] + index[1]
        row, window = each // windows.number, each % windows.number
        _, nt, nw = windows.counts[1], windows.counts[0], windows.counts[2]
        return row, window, ((window // nw) % nt, window // (nt * nw), window % nw)

    def own(x: Any) -> pl.BlockSpec:
        def index(*at: Any) -> tuple[Any, ...]:
            row, _, corner = place(*at)
            return row, *corner, 0

        return pl.BlockSpec((1, *windows.window, x.shape[-1]), index)

    def caption(x: Any) -> pl.BlockSpec:
        def index(*at: Any) -> tuple[Any, ...]:
            row, window, corner = place(*at)
            return row, window if written else (corner[0] if x.shape[1] > 1 else 0), 0, 0

        return pl.BlockSpec((1, 1, *x.shape[2:]), index)

    def mask(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, *x.shape[2:]), lambda *at: (*place(*at)[:2], 0, 0))

    def identity(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, *x.shape[1:]), lambda *at: (place(*at)[0], 0, 0))

    makers = (own, caption, mask, identity)
    return Tokens(*(None if x is None else block(x) for block, x in zip(makers, tokens, strict=True)))  # type: ignore[arg-type]


class _Head:
    """A head's place along the last axis: a slab of whole lanes, and which of them are its own."""

    def __init__(self, shape: Shape, head: int):
        self.window, self.width, self.all = shape.windows.window, shape.head_width, shape.width
        first, last = head * self.width, (head + 1) * self.width
        start, stop = first // LANES * LANES, -(-last // LANES) * LANES
        self.slab = slice(start, stop)
        self.whole = (start, stop) == (first, last)
        self.first, self.last = first - start, last - start

    def own(self, x: Array) -> Array:
        """`x` with zeros in the lanes of other heads."""
        return x if self.whole else jnp.where(self._mine(x), x, jnp.zeros_like(x))

    def read(self, ref: Any, part: int = 0) -> Float[Array, "n slab"]:
        """The window's rows of one of the arrays that lie side by side, in float32, whose tiles are the 8 tokens that lie side by side in a grid."""
        lanes = self._lanes(part)
        block = ref[0, 0, :, lanes] if len(ref.shape) == 4 else ref[0, :, :, :, lanes]
        return block.astype(jnp.float32).reshape(-1, block.shape[-1])

    def write(self, ref: Any, x: Float[Array, "n slab"], part: int = 0) -> None:
        """Other lanes of the slab keep what they hold: their own heads write all of them in turn."""
        x = x if self.whole else jnp.where(self._mine(x), x, self.read(ref, part))
        if len(ref.shape) == 4:
            ref[0, 0, :, self._lanes(part)] = x.astype(ref.dtype)
        else:
            ref[0, :, :, :, self._lanes(part)] = x.reshape(*self.window, -1).astype(ref.dtype)

    def _lanes(self, part: int) -> slice:
        return slice(self.slab.start + part * self.all, self.slab.stop + part * self.all)

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
        x = self.own(x)
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


class _Read(NamedTuple):
    """A head's queries, keys and values with their offsets, queries and keys normalised; and the reciprocal deviations."""

    query: Array
    key: Array
    value: Array
    query_inverse: Array
    key_inverse: Array


def _read(head: _Head, tokens: Tokens, shared: Shared, norm: bool) -> _Read:
    query, key, value = (head.read(tokens.own, part) for part in range(3))
    if tokens.caption is not None:
        words = [head.read(tokens.caption, part) for part in range(2)]
        key, value = (jnp.concatenate(pair) for pair in zip((key, value), words))
    query, key, value = (x + of[:, head.slab] for x, of in zip((query, key, value), shared.offsets))
    query, query_inverse = head.normalised(query, norm)
    key, key_inverse = head.normalised(key, norm)
    return _Read(query, key, value, query_inverse, key_inverse)


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
        scores = jnp.where(tokens.mask[0, 0] > 0, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True)).astype(key.dtype)
    return weights, weights.astype(jnp.float32).sum(-1, keepdims=True)


def _forward(shape: Shape, tokens: Tokens, shared: Shared, mixed: Tokens, sums: None) -> None:
    dtype = tokens.own.dtype
    for index in range(shape.heads):
        head = _Head(shape, index)
        query, key, value, *_ = _read(head, tokens, shared, shape.norm)
        query = query * shared.scale[:, head.slab]
        weights, total = _weights(tokens, shared, index, query.astype(dtype), key.astype(dtype))
        result = _product(weights, value.astype(dtype), (1, 0)) / total
        if tokens.identity is not None:
            result = jnp.where(tokens.identity[0] > 0, value, result)
        head.write(mixed.own, result)


def _backward(shape: Shape, tokens: Tokens, shared: Shared, given: Tokens, of: Tokens, sums: Shared) -> None:
    dtype, queries = tokens.own.dtype, shape.windows.tokens

    @pl.when(pl.program_id(1) == 0)
    def start() -> None:
        for ref in jax.tree.leaves(sums):
            ref[...] = jnp.zeros_like(ref)

    for index in range(shape.heads):
        head = _Head(shape, index)
        normal, key, value, query_inverse, key_inverse = _read(head, tokens, shared, shape.norm)
        scale = shared.scale[:, head.slab]
        query, value = (normal * scale).astype(dtype), value.astype(dtype)
        cotangent = past = head.own(head.read(given.own)).astype(dtype)
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
        for part, gradient in enumerate((of_query, of_key, of_value)):
            head.add(sums.offsets[part], gradient)
            head.write(of.own, gradient[:queries], part)
            if of.caption is not None and part:
                head.write(of.caption, gradient[queries:], part - 1)
