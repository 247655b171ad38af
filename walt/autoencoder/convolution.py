"""The one convolution of the autoencoder, in the form that each platform runs fastest.

All forms are sums of the same products and differ in rounding alone; `plain` is the one that the others are tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]
Form = Callable[[Array, Array, Size3], Array]
Plane = Callable[[Array, Array, Size2], Array]
LANES = 128  # of a TPU's vector unit: arrays of fewer channels fill it badly
SUBLANES = 8
"""Of a TPU's vector unit: with a multiple of this many videos on a device they lie along them, and with fewer XLA puts pieces of pictures there, by
passes over memory that cost more than the convolutions."""


def convolve(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], strides: Size3
) -> Float[Array, "b s i j d"]:
    """VALID 3D convolution, each pass in the form that is fastest for its shape on the platform it is compiled for."""
    on_tpu = Passes.on_tpu(kernel.shape[-2], kernel.shape[-1], strides)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: planes_on_cpu(x, k, strides),
        tpu=lambda x, k: by_pass(x, k, strides, on_tpu),
        default=lambda x, k: plain(x, k, strides),
    )


def plain(x: Array, kernel: Array, strides: Size3) -> Array:
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NTHWC", "THWIO", "NTHWC"))


def _plane(x: Array, kernel: Array, strides: Size2, spare_rows: int = 0) -> Array:
    padding = ((0, spare_rows), (0, 0))
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def planes(x: Array, kernel: Array, strides: Size3, plane: Plane = _plane) -> Array:
    """One 2D convolution per temporal tap, of all the frames that it sees."""
    taps, total = kernel.shape[0], jnp.zeros((), x.dtype)
    for tap in range(taps):
        seen = _every(x, 1, tap, taps, strides[0])
        convolved = plane(seen.reshape(-1, *x.shape[2:]), kernel[tap], strides[1:])
        total = total + convolved.reshape(*seen.shape[:2], *convolved.shape[1:])
    return total


def planes_on_cpu(x: Array, kernel: Array, strides: Size3) -> Array:
    """`planes`, each in the form that XLA's CPU runs fastest; with it they win all three passes of nearly every shape, against XLA's 3D convolution
    and against products of gathered neighbours, so that a CPU needs no table (`bench_autoencoder.py --passes`)."""
    return planes(x, kernel, strides, _plane_on_cpu)


def _plane_on_cpu(x: Array, kernel: Array, strides: Size2) -> Array:
    """A product if the kernel is one position. Else with a row of padding, computed for every frame and dropped: convolutions without any run at 0.2
    to 0.8 of the speed of those with some, which we found by trying."""
    height, width, channels_in, channels_out = kernel.shape
    if height == width == max(strides) == 1:
        return (x.reshape(-1, channels_in) @ kernel[0, 0]).reshape(*x.shape[:-1], channels_out)
    rows = (x.shape[1] - height) // strides[0] + 1
    return _plane(x, kernel, strides, spare_rows=strides[0])[:, :rows]


def _every(x: Array, axis: int, tap: int, taps: int, stride: int) -> Array:
    """The slice along an axis that one tap of a VALID convolution sees."""
    outputs = (x.shape[axis] - taps) // stride + 1
    return jax.lax.slice_in_dim(x, tap, tap + (outputs - 1) * stride + 1, stride, axis)


class Passes(NamedTuple):
    """The form of each pass of one convolution: its value, and the gradients of its input and of its kernel."""

    value: Form
    input: Form
    kernel: Form

    @classmethod
    def on_tpu(cls, channels_in: int, channels_out: int, strides: Size3) -> Passes:
        """What libtpu 0.0.52 estimates as fastest, for v5e and v5p alike (`bench_autoencoder.py --passes --topology=…`).

        With enough channels XLA's own convolution wins every pass; with few it costs up to 4.5 times as many cycles as planes.
        """
        if channels_in <= 3:
            return cls(plain, planes, planes)
        if max(channels_in, channels_out) < LANES:
            return cls(planes, planes if max(strides) == 1 else plain, plain)
        return cls(plain, plain, plain)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_pass(x: Array, kernel: Array, strides: Size3, passes: Passes) -> Array:
    """The convolution with a form of its own for each pass; gradients of any order."""
    return passes.value(x, kernel, strides)


def _value(x: Array, kernel: Array, strides: Size3, passes: Passes) -> tuple[Array, tuple[Array, Array]]:
    return by_pass(x, kernel, strides, passes), (x, kernel)


def _gradients(strides: Size3, passes: Passes, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (of_input,) = jax.vjp(lambda x: passes.input(x, kernel, strides), x)[1](cotangent)
    (of_kernel,) = jax.vjp(lambda kernel: passes.kernel(x, kernel, strides), kernel)[1](cotangent)
    return of_input, of_kernel


by_pass.defvjp(_value, _gradients)

FORMS = {"plain": plain, "planes": planes, "planes_on_cpu": planes_on_cpu}
