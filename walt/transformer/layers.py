"""Layers that every part of the transformer shares: a linear map that XLA runs fast on any platform, and norms in at least float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
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
        y = flat(x).astype(self.dtype) @ constrain(self.kernel[...].astype(self.dtype), *self.axes)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @property
    def offset(self) -> Float[Array, " o"]:
        """The bias."""
        assert self.bias is not None
        return constrain(self.bias[...], self.axes[1])


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
