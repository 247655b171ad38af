import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from walt.config import ConfigError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.parallel.rules import AxisRules, parameter_shardings

TABLE = (
    ("attention/query/kernel", ("embed", "heads", None)),
    ("mlp/.*/kernel", ("embed", "mlp")),
)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def specs(tree, table=(), rules=None, **sizes):
    shardings = parameter_shardings(tree, make_mesh(MeshConfig(**sizes)), table, rules)
    return jax.tree.map(lambda s: s.spec, shardings)


def test_table_of_patterns():
    tree = {
        "block": {"attention": {"query": {"kernel": shape(8, 4, 2)}}, "mlp": {"in": {"kernel": shape(8, 32)}}},
        "other": {"kernel": shape(8, 32)},
    }
    found = specs(tree, TABLE, fsdp=4, tensor=2)
    assert found["block"]["attention"]["query"]["kernel"] == P("fsdp", "tensor", None)
    assert found["block"]["mlp"]["in"]["kernel"] == P("fsdp", "tensor")
    assert found["other"]["kernel"] == P(None, "fsdp")


def test_parameters_without_a_row_shard_their_largest_dimension_that_divides():
    tree = {"a": shape(7, 16, 8), "b": shape(7, 9), "vector": shape(64), "scalar": shape()}
    assert specs(tree, fsdp=8) == {"a": P(None, "fsdp", None), "b": P(), "vector": P(), "scalar": P()}
    assert specs(tree)["a"] == P()  # nothing to gain without fsdp


def test_two_logical_axes_on_one_mesh_axis_collide():
    with pytest.raises(ConfigError, match="layer/kernel: logical axes heads and mlp both lie on mesh axis 'tensor'"):
        specs({"layer": {"kernel": shape(8, 8)}}, [("kernel", ("heads", "mlp"))], tensor=2)
    moved = AxisRules((("heads", "tensor"), ("mlp", None)))
    assert specs({"kernel": shape(8, 8)}, [("kernel", ("heads", "mlp"))], moved, tensor=2)["kernel"] == P(
        "tensor", None
    )


def test_rows_that_do_not_fit_name_the_parameter():
    with pytest.raises(ConfigError, match=r"layer/kernel has shape \(8,\).*2 dimensions"):
        specs({"layer": {"kernel": shape(8)}}, [("kernel", ("embed", "mlp"))], fsdp=8)
    with pytest.raises(ConfigError, match=r"kernel has shape \(6, 8\): 6 does not divide over mesh axis fsdp=8"):
        specs({"kernel": shape(6, 8)}, [("kernel", ("embed", None))], fsdp=8)
