"""Two hosts, as two processes with one device each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import linear
import numpy as np
import pytest

from walt.training.checkpoint import restore_parts
from walt.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def run_two(workdir, **settings):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    shared |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, linear.__file__, str(workdir), json.dumps(settings)]
    processes = [
        subprocess.Popen(command, env=shared | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_two_hosts_train_like_one_and_resume(tmp_path):
    # A constant rate, so that the run can be made longer without having been another one.
    settings = dict(optimizer={"schedule": "constant"}, log_every=5)
    run_two(tmp_path / "two", num_steps=10, **settings)
    run_two(tmp_path / "two", num_steps=20, **settings)
    linear.run(tmp_path / "one", linear.make_config(num_steps=20, **settings))
    ours, theirs = restore_parts(tmp_path / "two")[:3], restore_parts(tmp_path / "one")[:3]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    assert [record["step"] for record in read_metrics(tmp_path / "two")] == [5, 10, 15, 20]
