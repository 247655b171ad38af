"""One run at a time in a work directory, and one work directory for all processes."""

import json
import threading
import time

import jobs
import linear
import numpy as np
import pytest
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from walt.config import ConfigError
from walt.training import claim
from walt.training.checks import check_same_everywhere


def test_a_second_run_is_refused_and_the_first_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "PATIENCE_SECONDS", 0.0)

    class Loader(linear.LinearLoader):
        def fail(self, step):
            if step == 15:
                with pytest.raises(
                    ConfigError, match=r"another run is training in .*run \(its heartbeat.0.json says where\)"
                ):
                    linear.run(tmp_path / "run")

    assert int(linear.run(tmp_path / "run", loader=Loader()).step) == 20
    assert int(linear.run(tmp_path / "run", linear.make_config(num_steps=22)).step) == 22, "it is free again"


def test_a_run_that_was_told_to_end_is_waited_for(tmp_path):
    held, free = threading.Event(), threading.Event()

    def other():
        with claim.claimed(tmp_path / "run"):
            held.set()
            free.wait()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    threading.Timer(0.5, free.set).start()
    began = time.monotonic()
    with claim.claimed(tmp_path / "run"):
        assert time.monotonic() - began > 0.4
    thread.join()
    assert not (tmp_path / "run").exists(), "nothing was written there"


def test_what_has_no_locks_is_used_without(tmp_path, monkeypatch, caplog):
    def unsupported(*arguments):
        raise OSError("Function not implemented")

    monkeypatch.setattr(claim.fcntl, "flock", unsupported)
    with claim.claimed(tmp_path):
        assert "nothing keeps a second run out of this folder" in caplog.text


def test_processes_of_different_checkpoints_or_configs_do_not_train(monkeypatch):
    found = []

    def among(others):
        monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: np.stack([mine, *others]))

    def check(step, learning_rate=0.1, depth=2, place="a"):
        resolved = ConfigDict({"transformer": {"depth": depth}, "data": {"path": place}})
        config = linear.make_config(optimizer={"learning_rate": learning_rate})
        check_same_everywhere("run", step, config, resolved, ("transformer",))

    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: found.append(mine) or mine[None])
    check(10)
    among(found)
    check(10)
    check(10, place="b")  # each host may have the data at a place of its own
    with pytest.raises(ConfigError, match="process 0 that of step 20, process 1 that of step 10"):
        check(20)
    with pytest.raises(ConfigError, match="process 0 none, process 1 that of step 10"):
        check(None)
    for changes in ({"learning_rate": 0.2}, {"depth": 3}):
        with pytest.raises(ConfigError, match=r"different configs \(process 1 another than process 0\)"):
            check(10, **changes)


@pytest.mark.slow
def test_a_job_whose_processes_have_folders_of_their_own_is_refused(tmp_path):
    settings = json.dumps({"num_steps": 4})
    own = {index: [str(tmp_path / f"host{index}" / "run"), settings] for index in range(2)}
    for process in jobs.ended(jobs.start([linear.__file__], 2, own=own)):
        assert process.status == 1
        assert "process 1 does not see what process 0 wrote to" in process.errors
