"""Restoring onto another mesh: no host reads more than its share."""

import json
import sys
from pathlib import Path

import jobs
import pytest

WIDTH = 4096  # arrays of 64 MB; weights, averages and two moments make 256 MB

PROGRAM = """
import json, re, sys
from pathlib import Path

sys.path.insert(0, {folder!r})
from walt.parallel import initialize
initialize(heartbeat_timeout=20)
import jax, jax.numpy as jnp
import numpy as np
import linear
from walt.config import to_config_dict
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.training.checkpoint import Checkpoints, Clock
from walt.training.state import abstract_state, create_state


class Wide(linear.LinearTask):
    def init(self, key):
        return {{"model": {{"linear": {{"kernel": jnp.ones(({width}, {width})) * jnp.arange({width})}}}}}}, {{}}


def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024


Path("/proc/self/clear_refs").write_text("5")
config = linear.make_config(mesh=MeshConfig(data=1, fsdp=jax.device_count()))
mesh = make_mesh(config.mesh, jax.devices())
with jax.set_mesh(mesh), Checkpoints(sys.argv[1], 1) as checkpoints:
    if checkpoints.latest is None:
        checkpoints.save(create_state(Wide(), config, mesh), 0, Clock(), to_config_dict(config), wait=True)
        raise SystemExit
    abstract = abstract_state(Wide(), config, mesh)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    state, _ = checkpoints.restore(abstract)
    jax.block_until_ready(state)
    grown = peak() - before
    kernel = state.params["model"]["linear"]["kernel"]
    right = all((np.asarray(shard.data) == np.arange({width})[shard.index[1]]).all() for shard in kernel.addressable_shards)
    share = sum(shard.data.nbytes for leaf in jax.tree.leaves((state.params, state.ema, state.opt)) for shard in leaf.addressable_shards)
    print(json.dumps([grown, share / 2**20, bool(right)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is asked of Linux")
def test_no_process_holds_what_is_not_its_share(tmp_path):
    program = PROGRAM.format(folder=str(Path(__file__).parent), width=WIDTH)
    jobs.run(["-c", program, str(tmp_path)], 1)
    for process in jobs.run(["-c", program, str(tmp_path)], 4, timeout=300):
        grown, share, right = json.loads(process.output.splitlines()[-1])
        print(f"{grown:.0f} MB for a share of {share:.0f} MB")
        # What is read lies in memory twice for a moment, since these devices have no memory of their own; the whole has 256 MB.
        assert right and share == pytest.approx(64, abs=1) and grown < 3 * share
