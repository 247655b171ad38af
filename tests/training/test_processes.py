"""Two hosts, as two processes."""

import json

import jax
import jobs
import linear
import numpy as np
import pytest

from walt.training.checkpoint import restore_parts
from walt.training.metrics import read_metrics


def run_two(workdir, devices=1, **settings):
    jobs.run([linear.__file__, str(workdir), json.dumps(settings)], devices=devices)


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


@pytest.mark.slow
def test_hosts_whose_devices_are_no_neighbours_load_the_rows_that_these_hold(tmp_path):
    """As on a pod, whose devices are ordered by the network of the chips: the first host holds the first and the third part of a batch."""
    settings = dict(optimizer={"schedule": "constant"}, log_every=5, num_steps=10)
    run_two(tmp_path / "two", devices=2, interleaved=True, **settings)
    linear.run(tmp_path / "one", linear.make_config(**settings))
    ours, theirs = restore_parts(tmp_path / "two")[:3], restore_parts(tmp_path / "one")[:3]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
