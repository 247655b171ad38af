import jax
import numpy as np
import pytest

from walt.config import ConfigError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_shards, count_rows, make_mesh, put_batch, rows_of_process


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1, 1, 1)),
        ({"fsdp": 4}, (1, 2, 4, 1, 1)),
        ({"slice": 2, "data": 2, "tensor": 2}, (2, 2, 1, 1, 2)),
        ({"data": 1, "fsdp": -1, "context": 2}, (1, 1, 4, 2, 1)),
    ],
)
def test_mesh_shapes(sizes, shape):
    mesh = make_mesh(MeshConfig(**sizes))
    assert mesh.axis_names == ("slice", "data", "fsdp", "context", "tensor")
    assert mesh.devices.shape == shape
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"data": 4}, {"data": 16}, {"fsdp": 16}])
def test_mesh_that_does_not_fit(sizes):
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        make_mesh(MeshConfig(**sizes))


def test_bad_axis_sizes():
    with pytest.raises(ConfigError, match="fsdp must be a number of devices"):
        MeshConfig(fsdp=0)
    with pytest.raises(ConfigError, match="data and fsdp"):
        MeshConfig(fsdp=-1)


def test_put_batch_divides_rows():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    placed = put_batch({"x": rows, "row": np.arange(8)}, mesh)
    assert batch_shards(mesh) == 4
    assert placed["x"].addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed["x"], rows)


def test_put_batch_says_what_divides():
    with pytest.raises(ConfigError, match=r"'x' has 6 rows.*multiple of 8"):
        put_batch({"x": np.zeros((6, 3))}, make_mesh(MeshConfig()))


def test_hosts_load_the_rows_that_their_devices_hold(monkeypatch):
    """Devices of a pod are ordered by the network of the chips: a host may hold the first and the sixth part of a batch."""
    mesh = make_mesh(MeshConfig())
    assert rows_of_process(32, mesh) == tuple(range(32)) and count_rows({"x": np.zeros((32, 2))}, mesh) == 32
    monkeypatch.setattr("walt.parallel.mesh.shards_of_process", lambda mesh: [0, 5])
    assert rows_of_process(32, mesh) == (0, 1, 2, 3, 20, 21, 22, 23)
    assert count_rows({"x": np.zeros((8, 2))}, mesh) == 32
    with pytest.raises(ConfigError, match="batch_size is 12, which does not divide over 8 devices"):
        rows_of_process(12, mesh)
