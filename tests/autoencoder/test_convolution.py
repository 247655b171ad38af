"""Every form of the convolution against XLA's own, and twice differentiated."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.autoencoder import convolution


@settings(max_examples=5)
@given(
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    strides=st.tuples(*[st.integers(1, 2)] * 3),
    size=st.tuples(*[st.integers(4, 7)] * 3),
)
def test_every_form_equals_the_plain_convolution_with_gradients(kernel, strides, size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*kernel, 3, 5)), jnp.float32)

    def value_and_gradients(form):
        value = lambda x, w: form(x, w, strides)  # noqa: E731
        return value(x, w), jax.grad(lambda x, w: jnp.sin(value(x, w)).sum(), (0, 1))(x, w)

    # One program for all: compiling the operations one by one takes several times as long.
    mixed = convolution.Passes(convolution.planes, convolution.planes_on_cpu, convolution.plain)
    forms = convolution.FORMS | {"by pass": partial(convolution.by_pass, passes=mixed)}
    found = jax.jit(lambda: {name: value_and_gradients(form) for name, form in forms.items()})()
    expected, slopes = found.pop("plain")
    assert set(found) == {"planes", "planes_on_cpu", "by pass"}
    for ours, our_slopes in found.values():
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4)
        for a, b in zip(our_slopes, slopes, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2)])
def test_every_form_in_bfloat16_is_close_to_float32(strides):
    """Values and gradients, within a hundredth of their norm: a bfloat16 number is good to 1 in 256."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 8, 8, 16)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 3, 16, 16)), jnp.float32)

    def value_and_gradients(form, dtype):
        value, pull = jax.vjp(lambda x, w: form(x, w, strides), x.astype(dtype), w.astype(dtype))
        return value, *pull(jnp.cos(jnp.arange(value.size)).reshape(value.shape).astype(dtype))

    found = jax.jit(lambda: {n: value_and_gradients(f, jnp.bfloat16) for n, f in convolution.FORMS.items()})()
    expected = jax.jit(lambda: value_and_gradients(convolution.plain, jnp.float32))()
    assert set(found) == {"plain", "planes", "planes_on_cpu"}
    for name, arrays in found.items():
        for a, b in zip(arrays, expected, strict=True):
            assert a.dtype == jnp.bfloat16
            assert np.linalg.norm(np.float32(a) - b) < 1e-2 * np.linalg.norm(b), name


NARROW = convolution.Passes.on_tpu(2, 2, (1, 1, 1))


@pytest.mark.parametrize("form", [convolution.convolve, partial(convolution.by_pass, passes=NARROW)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 2)])
def test_second_derivatives_agree_with_finite_differences(form, strides):
    """R1 differentiates a gradient: along a random direction its slope is what two nearby kernels say."""
    with jax.enable_x64(True):
        x, kernel, direction = (
            jax.random.normal(jax.random.key(seed), shape, jnp.float64)
            for seed, shape in enumerate([(1, 5, 5, 5, 2), (3, 3, 3, 2, 2), (3, 3, 3, 2, 2)])
        )

        @jax.jit
        def r1(distance):
            moved = kernel + distance * direction
            slope = jax.grad(lambda x: jnp.sin(form(x, moved, strides)).sum())(x)
            return jnp.square(slope).sum()

        nearby = (r1(1e-5) - r1(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.jit(jax.grad(r1))(0.0), nearby, rtol=1e-6)


@pytest.mark.parametrize(("channels", "axes"), [(64, {2}), (128, {3})])
def test_a_tpu_program_has_the_form_of_its_table(channels, axes):
    """Lowered for a TPU, which needs none: few channels become 2D convolutions, many stay a 3D one."""
    x = jax.ShapeDtypeStruct((1, 3, 4, 4, channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, channels, channels), jnp.float32)
    convolve = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, (1, 1, 1)))
    program = convolve.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    windows = re.findall(r"stablehlo\.convolution.*stride = \[([\d, ]+)\]", program)
    assert {len(strides.split(",")) for strides in windows} == axes


@pytest.mark.parametrize(("size", "convolutions"), [(3, 9), (1, 0)])
def test_a_cpu_program_has_planes_with_a_spare_row_or_products(size, convolutions):
    """Every pass is one 2D convolution per tap, and the forward ones have padding; of a kernel of one position it is a product."""
    x, kernel = jnp.zeros((1, 3, 7 + size, 7 + size, 4)), jnp.zeros((3, size, size, 4, 8))
    value = lambda x, kernel: jnp.sin(convolution.convolve(x, kernel, (1, 1, 1))).sum()  # noqa: E731
    program = jax.jit(jax.value_and_grad(value, (0, 1))).lower(x, kernel).compile().as_text()
    found = re.findall(r" convolution\(.*window={([^}]*)}", program)
    assert len(found) == convolutions and all("pad=" in window for window in found)
