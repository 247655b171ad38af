"""launch/pods.py: its slices are those of the planner, so that what was planned can be launched by the same name."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from walt.planning.topology import GENERATIONS, parse_topology


@pytest.fixture
def pods(root):
    spec = importlib.util.spec_from_file_location("launch_pods", root / "launch" / "pods.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_slice_can_be_planned(pods):
    assert list(pods.TPUS) == list(GENERATIONS)
    for name, tpu in pods.TPUS.items():
        for shape in tpu.shapes.split():
            found, planned = pods.parse_slice(f"{name}:{shape}"), parse_topology(f"{name}:{shape}")
            assert found.chips == planned.chips == found.hosts * found.chips_per_host


@pytest.mark.parametrize(
    "topology", ["v5p", "v5p:", "v5p:4x4", "v5p:0x4x4", "v5p:4x4x-4", "v5e:4x4x4", "v5e:32x32", ":4x4"]
)
def test_what_is_no_slice(pods, topology):
    with pytest.raises(pods.LaunchError, match="topology"):
        pods.parse_slice(topology)
