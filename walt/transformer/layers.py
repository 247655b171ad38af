"""Layers that every part of the transformer shares: a linear map that XLA runs fast on any platform, and norms in at least float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from walt.parallel.activations import axis_size, constrain

Initializer = Callable[..., Array]

xavier = jax.nn.initializers.xavier_uniform()
small_normal = jax.nn.initializers.normal(0.02)
zeros = jax.nn.initializers.zeros
NORM_EPSILON = 1e-6


class Linear(nnx.Module):
    """Affine map of the last axis.

    The input is flattened to two dimensions around the product, see `flat`. Where parameters are spread over devices, the product gathers
    its weights, in the dtype of the computation, but for the dimension (of inputs or outputs) that `axes` names: activations stay where they are.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rngs: nnx.Rngs,
        *,
        dtype: str = "float32",
        bias: bool = True,
        initializer: Initializer = xavier,
        axes: tuple[str | None, str | None] = (None, None),
    ):
        self.axes = axes
        self.kernel = nnx.Param(initializer(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if bias else None
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        y = self.product(x)
        return y if self.bias is None else y + self.offset.astype(self.dtype)

    def product(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Without the bias, for what adds it later."""
        return _product(x, self.whole)

    def kept_product(self, x: Float[Array, "*batch i"], name: str) -> Float[Array, "*batch o"]:
        """`product`, for whose gradient `x` is kept under this name where rematerialisation keeps it.

        What is kept goes into the gradient alone: of what anything else uses as well JAX takes a copy in a pass of its own, rounded again.
        """
        y = _product_and_kept(flat(x).astype(self.dtype), checkpoint_name(flat(x).astype(self.dtype), name), self.whole)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @property
    def whole(self) -> Float[Array, "i o"]:
        """The weights as they multiply, gathered from the devices that they are spread over."""
        return constrain(self.kernel[...].astype(self.dtype), *self.axes)

    @property
    def offset(self) -> Float[Array, " o"]:
        """The bias."""
        assert self.bias is not None
        return constrain(self.bias[...], self.axes[1])


def side_by_side(x: Float[Array, "*batch i"], maps: Sequence[Linear]) -> Float[Array, "*batch o"]:
    """The products of `x` with several maps alike, without biases, as one product, which reads `x` once; `part_of` takes them apart.

    Where heads are divided over devices, what each device has of all maps lies side by side.
    """
    groups, (size, _) = axis_size("heads"), maps[0].kernel.shape
    kernels = [each.kernel[...].astype(each.dtype).reshape(size, groups, -1) for each in maps]
    return _product(x, constrain(jnp.stack(kernels, axis=2).reshape(size, -1), *maps[0].axes))


def part_of(x: Float[Array, "*batch o"], part: int, parts: int) -> Float[Array, "*batch d"]:
    """One of what `side_by_side` has made."""
    return x.reshape(*x.shape[:-1], axis_size("heads"), parts, -1)[..., part, :].reshape(*x.shape[:-1], -1)


def _product(x: Float[Array, "*batch i"], kernel: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    return (flat(x).astype(kernel.dtype) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _product_and_kept(x: Array, kept: Array, kernel: Array) -> Array:
    """x @ kernel; `kept` has the values of `x`."""
    return x @ kernel


def _product_forward(x: Array, kept: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel, (kept, kernel)


def _product_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, None, Array]:
    kept, kernel = saved
    axes = tuple(range(kept.ndim - 1))
    return gradient @ kernel.T, None, jnp.tensordot(kept, gradient, (axes, axes))


_product_and_kept.defvjp(_product_forward, _product_backward)


class NormScale(nnx.Module):
    """The learned scale of a LayerNorm without offset."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))


def layer_norm(x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """LayerNorm over the last axis without parameters (they come from the conditioning), eps 1e-6.

    The variance is the mean of squares less the square of the mean: one pass over the tokens for both, where a centred sum of squares needs two.
    """
    wide = at_least_float32(x)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True) - jnp.square(mean)
    return ((wide - mean) * jax.lax.rsqrt(jnp.maximum(variance, 0) + NORM_EPSILON)).astype(x.dtype)


def head_norm(x: Float[Array, "*batch d"], heads: int) -> Float[Array, "*batch d"]:
    """LayerNorm of every head's share of the last axis, without parameters, at least float32, eps 1e-6.

    Sums over a head and their spreading back are products with a 0/1 matrix, which a TPU does without leaving the layout of the
    whole width; with an axis of heads, the change of layout cost as much as the rest of the attention.
    """
    wide = flat(at_least_float32(x))
    members = jnp.repeat(jnp.eye(heads, dtype=wide.dtype), x.shape[-1] // heads, axis=0)
    multiply = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def mean(values: Array) -> Array:
        return multiply(values, members) * (heads / x.shape[-1])

    def spread(statistic: Array) -> Array:
        return multiply(statistic, members.T)

    centred = wide - spread(mean(wide))
    return (centred * spread(jax.lax.rsqrt(mean(jnp.square(centred)) + NORM_EPSILON))).reshape(x.shape)


def flat(x: Float[Array, "*batch d"]) -> Float[Array, "*rows d"]:
    """As two dimensions: on a CPU the weight gradient of a higher-rank product takes a path several times slower, and elsewhere the reshape is free.
    Where one example is divided over devices it stays as it is, since what is divided inside could not be flattened without gathering it."""
    return x if axis_size("context") > 1 else x.reshape(-1, x.shape[-1])


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own dtype if that is wider (float64 equality tests)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
