import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.transformer.layers import Linear
from walt.transformer.stack import REMAT, init_stack, run_stack


class Block(nnx.Module):
    def __init__(self, rngs):
        self.layer = Linear(8, 8, rngs)

    def __call__(self, x, context):
        return x + jnp.tanh(self.layer(x + context["shift"]))


def stack_of(count):
    return init_stack(Block, count, nnx.Rngs(0))


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    return jnp.asarray(random.normal(size=(3, 8))), {"shift": random.normal(size=8)}


def test_parameters_are_stacked_and_differ_between_layers():
    state = nnx.to_pure_dict(nnx.state(stack_of(5)))
    kernel = state["layer"]["kernel"]
    assert kernel.shape == (5, 8, 8) and state["layer"]["bias"].shape == (5, 8)
    assert len({float(layer[0, 0]) for layer in kernel}) == 5


def test_scan_equals_a_loop_over_layers(inputs):
    x, context = inputs
    stack = stack_of(4)
    kernels, biases = (np.asarray(leaf[...]) for leaf in (stack.layer.kernel, stack.layer.bias))
    looped = np.asarray(x)
    for kernel, bias in zip(kernels, biases, strict=True):
        looped = looped + np.tanh((looped + context["shift"]) @ kernel + bias)
    np.testing.assert_allclose(run_stack(stack, x, context)[0], looped, atol=1e-5)


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_remat_changes_no_gradient(remat, inputs):
    x, context = inputs
    graph, states = nnx.split(stack_of(3))

    def gradients(policy):
        def loss(states, x, context):
            return jnp.sum(run_stack(nnx.merge(graph, states), x, context, remat=policy)[0] ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(states, x, context)

    for a, b in zip(jax.tree.leaves(gradients(remat)), jax.tree.leaves(gradients("none")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_program_does_not_grow_with_depth(inputs):
    x, context = inputs

    def program(count):
        graph, states = nnx.split(nnx.eval_shape(lambda: stack_of(count)))
        run = jax.jit(lambda states: run_stack(nnx.merge(graph, states), x, context)[0])
        return len(run.lower(states).as_text().splitlines())

    assert program(12) == program(2)
