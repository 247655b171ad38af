import importlib.util

import pytest

from walt.config import ConfigError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.planning import topology
from walt.planning.topology import GENERATIONS, parse_topology


def test_a_name_gives_its_chips():
    pod = parse_topology("v5p:4x4x8", num_slices=2)
    assert (pod.shape, pod.chips, pod.generation.peak_flops) == ((4, 4, 8), 256, 459e12)
    assert parse_topology("v5e:4x8").chips == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7:2x2", "'v7' is none of v4, v5e, v5p, v6e, tpu7x"),
        ("v5p:4x4", "not of the form v5p:4x4x4"),
        ("v5e:4x4x4", "not of the form v5e:4x4"),
        ("v5p", "not of the form"),
        ("v5p:0x4x4", "not of the form"),
    ],
)
def test_other_names_are_refused_with_what_would_do(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs libtpu, and no TPU: pip install "walt\[tpu\]"'):
        parse_topology("v5e:2x2").devices()


def test_clocks_are_those_of_the_peaks():
    """Peak over clock is what the matrix units do in a cycle: a whole number of 128x128 units, twice (multiply and add)."""
    for name, generation in GENERATIONS.items():
        units = generation.peak_flops / generation.clock / (2 * 128 * 128)
        assert units == pytest.approx(round(units), rel=0.02), name


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='needs libtpu: pip install "walt[tpu]"')
@pytest.mark.parametrize("name", ["v5e:8x8", "v6e:8x8", "v5p:4x4x4"])
def test_axes_may_be_parts_of_the_sides_of_a_slice(name):
    for fsdp in (2, 16, 32):
        mesh = make_mesh(MeshConfig(fsdp=fsdp), parse_topology(name).devices())
        assert mesh.shape["fsdp"] == fsdp and len({device.id for device in mesh.devices.flat}) == 64
