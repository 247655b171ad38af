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
    ("name", "kib"), [("v5e:2x2", 98304), ("v5p:2x2x1", 49152), ("v6e:2x2", 98304), ("v4:2x2x1", None)]
)
def test_a_fusion_may_take_three_quarters_of_a_core(name, kib):
    options = tpu.compiler_options(make_mesh(MeshConfig(), parse_topology(name).devices()))
    assert options == (kib and {"xla_tpu_scoped_vmem_limit_kib": str(kib)})
