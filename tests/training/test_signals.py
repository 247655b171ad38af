"""Whole processes that are interrupted and killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import linear
import numpy as np
import pytest

from walt.training.checkpoint import latest_step, restore_parts
from walt.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
# One device, but compiled as the tests are (tests/conftest.py): other optimisations round otherwise.
XLA_FLAGS = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)


def start(workdir, **settings):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": XLA_FLAGS, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, linear.__file__, str(workdir), json.dumps(settings)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(workdir, step, process):
    while not any(record["step"] >= step for record in read_metrics(workdir)):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_saves_and_goes_on_where_it_was(tmp_path, number):
    settings = dict(num_steps=400, log_every=4, checkpoint_every=1000)
    process = start(tmp_path / "run", **settings, seconds_per_batch=0.02)
    wait_for_step(tmp_path / "run", 8, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in output
    step = latest_step(tmp_path / "run")
    assert f"stopped at step {step}, which is saved" in output and 8 <= step < 400
    config = linear.make_config(**settings)
    resumed, straight = linear.run(tmp_path / "run", config), linear.run(tmp_path / "straight", config)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    steps = [record["step"] for record in read_metrics(tmp_path / "run")]
    assert steps == list(range(4, 401, 4))


@pytest.mark.slow
def test_a_run_killed_at_random_times_ends_as_if_nothing_had_happened(tmp_path):
    settings = dict(num_steps=120, log_every=7, checkpoint_every=15, keep_checkpoints=2)
    draw, kills = random.Random(0), 0
    while True:
        process = start(tmp_path / "run", **settings, seconds_per_batch=0.02)
        known = latest_step(tmp_path / "run") or 0
        while process.poll() is None and (latest_step(tmp_path / "run") or 0) == known:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.4))
        if process.poll() is not None:
            assert process.returncode == 0, process.stdout.read()
            break
        process.kill()
        process.communicate()
        kills += 1
    assert kills >= 3
    linear.run(tmp_path / "straight", linear.make_config(**settings))
    for ours, theirs in zip(restore_parts(tmp_path / "run")[:3], restore_parts(tmp_path / "straight")[:3]):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    ours, theirs = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "straight")
    assert [(r["step"], r["loss"]) for r in ours] == [(r["step"], r["loss"]) for r in theirs]
