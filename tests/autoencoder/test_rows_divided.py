"""The autoencoder on eight devices: rows of a batch divided, and the rows of its frames with borders exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import Autoencoder, reconstruct
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import parameter_shardings
from walt.training.module import Functional

CONFIG = AutoencoderConfig(
    base_channels=8,
    channel_multipliers=(1, 1),
    strides=((2, 2),),
    temporal_kernels=(3, 3),
    res_blocks=1,
    mid_blocks=1,
    groups=4,
)


@pytest.fixture(scope="module")
def on_one_device():
    model = Functional(lambda rngs: Autoencoder(CONFIG, rngs))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    video = np.random.default_rng(0).uniform(-1, 1, (8, 3, 16, 16, 3)).astype(np.float32)

    def loss(params, extra, video):
        return jnp.square(reconstruct(model.bind(params, extra), video) - jnp.cos(video)).mean()

    function = jax.value_and_grad(loss)
    params, extra = jax.tree.map(np.asarray, (params, extra))
    return function, (params, extra, video), jax.tree.map(np.asarray, jax.jit(function)(params, extra, video))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        {"data": 2, "fsdp": 2, "context": 2},
        pytest.param({"data": 2, "context": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_one_device(sizes, on_one_device):
    function, (params, extra, video), (loss, gradients) = on_one_device
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, parameter_shardings(params, mesh))
        rows = jax.device_put(video, NamedSharding(mesh, PartitionSpec(("slice", "data", "fsdp"))))
        found_loss, found = jax.jit(function)(placed, extra, rows)
        forward = jax.jit(lambda *inputs: function(*inputs)[0]).lower(placed, extra, rows).compile().as_text()
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(gradients), strict=True):
        assert np.linalg.norm(ours - expected) <= 1e-4 * max(np.linalg.norm(expected), 1e-4)
    assert ("collective-permute" in forward) == ("context" in sizes)  # the borders
