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

Size3 = tuple[int, int, int]
Form = Callable[[Array, Array, Size3], Array]
LANES = 128  # of a TPU's vector unit: arrays of fewer channels fill it badly
LARGE_FRAME = 64 * 64  # positions; its gathered neighbours outgrow a CPU's caches


def convolve(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], strides: Size3
) -> Float[Array, "b s i j d"]:
    """VALID 3D convolution, each pass in the form that is fastest for its shape on the platform it is compiled for."""
    on_cpu = Passes.on_cpu(x.shape[2] * x.shape[3], kernel.shape, strides)
    on_tpu = Passes.on_tpu(kernel.shape[-2], kernel.shape[-1], strides)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: by_pass(x, k, strides, on_cpu),
        tpu=lambda x, k: by_pass(x, k, strides, on_tpu),
        default=lambda x, k: plain(x, k, strides),
    )


def plain(x: Array, kernel: Array, strides: Size3) -> Array:
    """XLA's own convolution."""
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NTHWC", "THWIO", "NTHWC"))


def planes(x: Array, kernel: Array, strides: Size3) -> Array:
    """One 2D convolution per temporal tap, of all the frames that it sees."""
    taps, time, space = kernel.shape[0], strides[0], strides[1:]
    total = jnp.zeros((), x.dtype)
    for tap in range(taps):
        seen = _every(x, 1, tap, taps, time)
        frames = seen.reshape(-1, *x.shape[2:])
        convolved = jax.lax.conv_general_dilated(
            frames, kernel[tap], space, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        total = total + convolved.reshape(*seen.shape[:2], *convolved.shape[1:])
    return total


def products(x: Array, kernel: Array, strides: Size3) -> Array:
    """One matrix product per temporal tap, of the frames that it sees with its part of the kernel."""
    taps, height, width, _, channels = kernel.shape
    gathered = _neighbours(_neighbours(x, 3, width, strides[2]), 2, height, strides[1])
    total = jnp.zeros((), x.dtype)
    for tap in range(taps):
        seen = _every(gathered, 1, tap, taps, strides[0])
        total = total + seen.reshape(-1, seen.shape[-1]) @ kernel[tap].reshape(-1, channels)
    return total.reshape(*seen.shape[:-1], channels)


def _neighbours(x: Array, axis: int, taps: int, stride: int) -> Array:
    """What every output position sees along an axis, side by side on the channel axis."""
    seen = [_every(x, axis, tap, taps, stride) for tap in range(taps)]
    return seen[0] if taps == 1 else jnp.concatenate(seen, axis=-1)


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
    def on_cpu(cls, positions: int, kernel: tuple[int, ...], strides: Size3) -> Passes:
        """What is fastest on two x86 cores (`bench_autoencoder.py --passes`), for padded frames of so many `positions`.

        XLA's own convolution is slow, above all its gradients. Small frames lie in the cache as gathered neighbours: there
        products win, if not every single pass, then the train step of the mini autoencoder (1.8 s against 2.2 s with planes). On
        large ones planes take half the time for the gradient of the input: a train step at 64 channels and 64x64 positions is
        1.15 times as fast. Products with few columns are slow wherever they are.
        """
        _, height, width, _, channels_out = kernel
        if channels_out <= 3:
            return cls(planes, planes, planes)
        if positions >= LARGE_FRAME and max(strides) == 1 and height * width > 1:
            return cls(products, planes, products)
        return cls(products, products, products)

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

FORMS = {"plain": plain, "planes": planes, "products": products}
