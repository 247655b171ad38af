"""Products of traced functions whose number of FLOPs is known."""

import jax
import jax.numpy as jnp
import pytest

from walt.training.flops import product_flops

A, B = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 32), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((16, 16), jnp.float32)


def test_products_count_two_per_multiply_add_and_everything_else_nothing():
    assert product_flops(lambda a, b: jnp.exp(a @ b).sum() + 1, A, B) == 2 * 8 * 16 * 32
    assert product_flops(lambda a, s: jnp.einsum("bi,bj,ij->b", a, a, s), A, SQUARE) == 2 * 8 * 16 * 16 + 2 * 8 * 16
    assert product_flops(jax.grad(lambda b, a: (a @ b).sum()), B, A) == 2 * 2 * 8 * 16 * 32


def test_loops_count_as_often_as_they_run_and_branches_once():
    def layer(x, w):
        inner = jax.lax.scan(lambda x, _: (x @ w, None), x, length=3)[0]
        return jax.checkpoint(jnp.tanh)(inner @ w), None

    stack = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    assert product_flops(lambda a, w: jax.lax.scan(layer, a, w)[0], A, stack) == 5 * 4 * 2 * 8 * 16 * 16

    def branch(a, s):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ s @ s, lambda: a @ s)

    assert product_flops(jax.jit(branch), A, SQUARE) == 2 * 2 * 8 * 16 * 16
    with pytest.raises(ValueError, match="how often the products in a while run"):
        product_flops(lambda a, s: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ s, a), A, SQUARE)


def test_of_the_forms_for_platforms_the_cheapest_is_the_function():
    def by_platform(a, s):
        return jax.lax.platform_dependent(a, cpu=lambda a: a @ s @ s, default=lambda a: a @ s)

    assert product_flops(by_platform, A, SQUARE) == 2 * 8 * 16 * 16


def test_convolutions_count_every_output_with_all_of_the_kernel():
    x, kernel = jnp.zeros((2, 9, 9, 4)), jnp.zeros((3, 3, 4, 8))
    numbers = ("NHWC", "HWIO", "NHWC")
    run = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=numbers)  # noqa: E731
    assert product_flops(run, x, kernel) == 2 * (2 * 4 * 4 * 8) * (3 * 3 * 4)
    grouped = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=4
    )
    assert product_flops(grouped, x, jnp.zeros((3, 3, 1, 8))) == 2 * (2 * 9 * 9 * 8) * 9
