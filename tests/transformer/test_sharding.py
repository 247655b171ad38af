"""The second stage on every mesh of eight devices: the same numbers as on one, and no communication but that of the contract."""

import dataclasses
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from meshes import every_mesh, mesh_of_eight

from walt.config import ConfigError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import parameter_shardings
from walt.training.module import Functional
from walt.transformer import Transformer, TransformerConfig
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

CONFIG = TransformerConfig(
    latent_shape=(3, 8, 8),
    in_channels=4,
    out_channels=4,
    width=32,
    depth=4,
    heads=8,
    spatial_window=(1, 8, 8),
    spacetime_window=(3, 4, 4),
    text_width=8,
    self_conditioning=False,
    dtype="float64",
)


def inputs_of(config, rows=8):
    random = np.random.default_rng(0)
    frames = config.latent_shape[0]
    return {
        "latents": random.normal(size=(rows, *config.latent_shape, config.in_channels)),
        "timestep": random.uniform(0, 1000, size=(rows, frames)),
        "is_image": np.arange(rows) % 2 == 1,
        "text_embeddings": random.normal(size=(rows, frames, 5, config.text_width)),
        "text_mask": np.arange(5) < 3 + np.zeros((rows, frames, 1)),
        "caption_index": np.tile(np.arange(frames), (rows, 1)),
    }


def loss_and_gradients(config):
    model = Functional(lambda rngs: Transformer(config, rngs))

    def loss(params, inputs):
        prediction = model.bind(params)(**inputs)
        return jnp.mean(jnp.square(prediction - jnp.sin(prediction + inputs["latents"])))

    return model, jax.value_and_grad(loss)


def parameters(model, dtype):
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(dtype), model.abstract_params)


def placed(params, inputs, mesh):
    rows = NamedSharding(mesh, PartitionSpec(("slice", "data", "fsdp")))
    return (
        jax.device_put(params, parameter_shardings(params, mesh, PARAMETER_AXES)),
        {name: jax.device_put(value, rows) for name, value in inputs.items()},
    )


@pytest.fixture(scope="module")
def on_one_device():
    with jax.enable_x64(True):
        model, function = loss_and_gradients(CONFIG)
        params, inputs = parameters(model, np.float64), inputs_of(CONFIG)
        return params, inputs, jax.tree.map(np.asarray, jax.jit(function)(params, inputs))


@every_mesh
def test_loss_and_gradients_are_those_of_one_device(sizes, on_one_device):
    params, inputs, (loss, gradients) = on_one_device
    mesh = mesh_of_eight(sizes)
    check_mesh(CONFIG, mesh.shape)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        _, function = loss_and_gradients(CONFIG)
        found_loss, found = jax.jit(function)(*placed(params, inputs, mesh))
    np.testing.assert_allclose(found_loss, loss, rtol=1e-9)
    assert_equal(found, gradients)


@every_mesh
def test_every_window_is_computed_and_from_its_own_input_alone(sizes):
    """One row as it is, and one for each window of the frame, which is changed: nothing but that window comes out otherwise."""
    config = dataclasses.replace(CONFIG, spatial_window=(1, 4, 4), text_width=None)
    inputs = {name: value for name, value in inputs_of(CONFIG).items() if name in ("latents", "timestep")}
    inputs = {name: np.repeat(value[:1], 8, axis=0) for name, value in inputs.items()} | {"is_image": np.zeros(8, bool)}
    boxes = [(slice(i, i + 4), slice(j, j + 4)) for i in (0, 4) for j in (0, 4)]
    for row, box in enumerate(boxes, start=1):
        inputs["latents"][row, 0, box[0].start, box[1].start] += 1.0
    mesh = mesh_of_eight(sizes)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        model, _ = loss_and_gradients(config)
        params, placed_inputs = placed(parameters(model, np.float64), inputs, mesh)
        out = np.asarray(jax.jit(lambda params, inputs: model.bind(params)(**inputs))(params, placed_inputs))
    moved = np.abs(out - out[0]).max(axis=-1)  # [row, frame, height, width]
    for row, box in enumerate(boxes, start=1):
        assert moved[(row, slice(None), *box)].min() > 1e-7
        moved[(row, slice(None), *box)] = 0
    assert moved.max() < 1e-9


@pytest.mark.parametrize(
    "sizes",
    [
        (4, 1, 2, 1),
        pytest.param((1, 2, 2, 2), marks=pytest.mark.slow),
        pytest.param((2, 1, 4, 1), marks=pytest.mark.slow),
    ],
)
def test_gradients_where_spatial_windows_divide_over_context(sizes):
    """Four frames of one window each: `context` divides the windows of S layers, not the queries."""
    config = dataclasses.replace(CONFIG, latent_shape=(4, 8, 8), spacetime_window=(4, 4, 4), depth=2)
    mesh = mesh_of_eight(sizes)
    with jax.enable_x64(True):
        model, function = loss_and_gradients(config)
        params, inputs = parameters(model, np.float64), inputs_of(config)
        _, gradients = jax.jit(function)(params, inputs)
        with jax.set_mesh(mesh):
            _, found = jax.jit(loss_and_gradients(config)[1])(*placed(params, inputs, mesh))
    assert_equal(found, gradients)


def assert_equal(found, gradients):
    for path, expected in jax.tree_util.tree_leaves_with_path(gradients):
        ours = np.asarray(at(found, path))
        assert np.linalg.norm(ours - expected) <= 1e-9 * max(np.linalg.norm(expected), 1e-6), path


def at(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def collectives(config, rows=8, **sizes):
    """Of the forward pass: how many of each kind, and the shapes of their results."""
    mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
    model, _ = loss_and_gradients(config)
    with jax.set_mesh(mesh):
        params, inputs = placed(parameters(model, np.float32), inputs_of(config, rows), mesh)
        inputs = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, inputs)
        forward = jax.jit(lambda params, inputs: model.bind(params)(**inputs))
        program = forward.lower(params, inputs).compile().as_text()
    names = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = re.findall(rf"= (.*?) ({names})(?:-start)?\(", program)
    kinds = Counter(kind for _, kind in found)
    return kinds, [
        tuple(int(n) for n in re.findall(r"\d+", first))
        for shape, _ in found
        for first in re.findall(r"\[([\d,]*)\]", shape)
    ]


SMALL = dataclasses.replace(CONFIG, dtype="float32", depth=2)  # one S/ST pair, whose stack is a loop of one
FRAME = (8, 3, 1, 64, 32)  # keys or values of a whole frame: an S window, and what cross-attention reads


def test_data_parallel_layers_do_not_communicate():
    assert collectives(SMALL, data=8)[0] == {}


def test_fsdp_gathers_weights_and_leaves_activations_where_they_are():
    kinds, shapes = collectives(SMALL, fsdp=8)
    assert set(kinds) == {"all-gather"}
    sizes = {leaf.size for leaf in jax.tree.leaves(loss_and_gradients(SMALL)[0].abstract_params)}
    together = [
        SMALL.width**2 * maps for maps in (3, 2)
    ]  # queries, keys and values of tokens; keys and values of words
    assert all(np.prod(shape) in {*sizes, *together} for shape in shapes), shapes
    assert sum(np.prod(shape) == together[0] for shape in shapes) == 4, "self- and cross-attention of two layers"


def test_context_gathers_keys_and_values_of_frames_and_moves_tokens_to_windows_that_are_no_bands():
    # Two devices: a band of rows holds whole ST windows. Keys and values of three attentions over frames: S, and cross twice.
    kinds, shapes = collectives(SMALL, data=4, context=2)
    assert kinds == {"all-gather": 6} and set(shapes) == {(2, *FRAME[1:])}
    # Four: a band is half a window. Tokens go there and back.
    kinds, shapes = collectives(SMALL, data=2, context=4)
    assert kinds == {"all-gather": 6, "all-to-all": 2}


def test_tensor_sums_activations_behind_every_pair_of_products():
    kinds, shapes = collectives(SMALL, data=4, tensor=2)
    assert set(kinds) == {"all-reduce"}
    activations = [shape for shape in shapes if shape == (2 * 3 * 64, 32)]
    assert len(activations) == 6  # attention, cross-attention and MLP of two layers
    statistics = [shape for shape in shapes if shape not in activations]
    assert all(shape[-1] == SMALL.heads for shape in statistics)  # norms of heads


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"heads": 4}, {"tensor": 8, "data": 1}, "mesh.tensor is 8, which does not divide transformer.heads 4"),
        ({"width": 24}, {"fsdp": 4, "data": 2, "tensor": 1}, ""),
        ({"width": 40}, {"fsdp": -1, "data": 1}, ""),
        ({"latent_shape": (3, 6, 8)}, {"context": 4, "data": 2}, "does not divide the 6 rows of tokens"),
        (
            {"latent_shape": (3, 8, 9), "spacetime_window": (3, 5, 3)},
            {"context": 8, "data": 1},
            r"divides neither the 6 windows \(3, 5, 3\) of a layer nor the 45 tokens",
        ),
        (
            {"adaln": "none", "spacetime_window": None, "relative_bias": False, "text_width": None},
            {"context": 2},
            "mesh.context must be 1",
        ),
    ],
)
def test_meshes_that_do_not_divide_are_refused(changes, sizes, message):
    config, mesh = dataclasses.replace(CONFIG, **changes), MeshConfig(**sizes).resolve(8)
    if message:
        with pytest.raises(ConfigError, match=message):
            check_mesh(config, mesh)
    else:
        check_mesh(config, mesh)
