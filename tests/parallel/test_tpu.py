import importlib.util

import pytest

from walt.parallel import tpu
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.planning.topology import parse_topology


def test_compilers_of_other_machines_are_left_alone():
    assert tpu.core() is None and tpu.compiler_options(make_mesh(MeshConfig())) is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "walt[tpu]"')
@pytest.mark.parametrize(
    ("name", "kib", "sparse_cores"),
    [("v5e:2x2", 98304, False), ("v5p:2x2x1", 49152, True), ("v6e:2x2", 98304, True), ("v4:2x2x1", None, False)],
)
def test_a_fusion_may_take_three_quarters_of_a_core_and_collectives_go_to_sparse_cores(name, kib, sparse_cores):
    mesh = make_mesh(MeshConfig(), parse_topology(name).devices())
    options = tpu.compiler_options(mesh) or {}
    assert options.get("xla_tpu_scoped_vmem_limit_kib") == (kib and str(kib))
    assert any("sparse_core" in option for option in options) == sparse_cores
    assert not any("sparse_core" in option for option in tpu.compiler_options(mesh, on_sparse_cores=False) or {})
