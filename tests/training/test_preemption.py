"""Whole processes that are told to end: by whom, when, and what is left."""

import http.server
import json
import os
import signal
import threading
import time
from pathlib import Path

import jax
import jobs
import linear
import numpy as np
import pytest

from walt.training import notice
from walt.training.folder import latest_step
from walt.training.metrics import read_metrics
from walt.training.preemption import PREEMPTED, StopSignal

LINEAR = linear.__file__


def start(workdir, processes=1, **settings):
    return jobs.start([LINEAR, str(workdir), json.dumps(settings)], processes)


def wait_for(condition, *processes):
    end = time.monotonic() + 240  # a machine may be busy with other things
    while not condition():
        assert time.monotonic() < end
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def wait_for_step(workdir, step, *processes):
    wait_for(lambda: any(record["step"] >= step for record in read_metrics(workdir)), *processes)


def wait_until(place, workdir, *processes, index=0):
    wait_for(Path(f"{workdir}.{place}.{index}").exists, *processes)


def end(*processes, number=signal.SIGTERM, whom=0, seconds=60):
    """What became of processes of which one is told to end, all of them within some seconds."""
    processes[whom].send_signal(number)
    began = time.monotonic()
    found = jobs.ended(processes, seconds)
    assert time.monotonic() - began < seconds and not any("Traceback" in process.errors for process in found), found
    return found


def assert_like_straight(workdir, **settings):
    """The run goes on to its end as if nothing had happened."""
    config = linear.make_config(**settings)
    resumed, straight = linear.run(workdir, config), linear.run(workdir.parent / "straight", config)
    for ours, theirs in ((resumed.params, straight.params), (resumed.opt, straight.opt), (resumed.ema, straight.ema)):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    ours, theirs = ([(r["step"], r["loss"]) for r in read_metrics(w)] for w in (workdir, workdir.parent / "straight"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 75)]
)
def test_a_run_that_is_told_to_end_saves_and_goes_on_where_it_was(tmp_path, number, status):
    settings = dict(num_steps=400, log_every=4, checkpoint_every=1000)
    process = start(tmp_path / "run", **settings, seconds_per_batch=0.02)
    wait_for_step(tmp_path / "run", 8, *process)
    [ended] = end(*process, number=number)
    assert ended.status == status
    step = latest_step(tmp_path / "run")
    assert f"stopped at step {step}, which is saved" in ended.output and 8 <= step < 400
    assert_like_straight(tmp_path / "run", **settings)


def test_two_processes_of_which_one_is_told_to_end_agree_on_a_step(tmp_path):
    settings = dict(num_steps=300, log_every=4, checkpoint_every=1000, optimizer={"schedule": "constant"})
    processes = start(tmp_path / "run", 2, **settings, seconds_per_batch=0.03)
    wait_for_step(tmp_path / "run", 8, *processes)
    found = end(*processes, whom=1)
    step = latest_step(tmp_path / "run")
    for process in found:
        assert process.status == PREEMPTED and f"stopped at step {step}, which is saved" in process.output
    assert 8 <= step < 300
    config = linear.make_config(**settings)  # and one process goes on where two were
    resumed, straight = linear.run(tmp_path / "run", config), linear.run(tmp_path / "straight", config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), resumed.params, straight.params)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_compilation_is_not_waited_for(tmp_path, processes):
    workdir = tmp_path / "run"
    jobs.run([LINEAR, str(workdir), json.dumps({"num_steps": 4})], processes)
    before = {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()}
    started = start(workdir, processes, num_steps=8, slow={"compile": 60})
    for index in range(processes):
        wait_until("compile", workdir, *started, index=index)
    for process in end(*started, whom=processes - 1, seconds=10):
        assert process.status == PREEMPTED and "nothing to save" in process.errors
    assert {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()} == before
    assert latest_step(workdir) == 4


@pytest.mark.slow
@pytest.mark.parametrize("place", ["finish", "evaluate"])
def test_nor_is_what_comes_after_a_save(tmp_path, place):
    """Latent statistics, for instance, or sample videos of a state that is saved."""
    workdir = tmp_path / "run"
    process = start(workdir, num_steps=20, slow={place: 60})
    wait_until(place, workdir, *process)
    [ended] = end(*process, seconds=10)
    assert ended.status == PREEMPTED and latest_step(workdir) == (20 if place == "finish" else 10)
    assert_like_straight(workdir, num_steps=20)


@pytest.mark.slow
def test_a_save_is_finished(tmp_path):
    workdir, settings = tmp_path / "run", dict(num_steps=100, checkpoint_every=10)
    process = start(workdir, **settings, slow={"save": 2}, seconds_per_batch=0.02)
    wait_until("save", workdir, *process)
    [ended] = end(*process)
    assert ended.status == PREEMPTED and (workdir / "checkpoints" / "10").is_dir()
    assert f"stopped at step {latest_step(workdir)}, which is saved" in ended.output and latest_step(workdir) >= 10
    assert_like_straight(workdir, **settings)


@pytest.mark.slow
def test_a_second_signal_ends_a_run_at_once_and_the_checkpoint_before_is_whole(tmp_path):
    workdir, settings = tmp_path / "run", dict(num_steps=100, checkpoint_every=10)
    jobs.run([LINEAR, str(workdir), json.dumps(settings | {"num_steps": 10})], 1)
    process = start(workdir, **settings, slow={"save": 60}, seconds_per_batch=0.02)
    wait_until("save", workdir, *process)
    process[0].send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process[0].poll() is None, "the save is being finished"
    [ended] = end(*process, seconds=2)
    assert ended.status == PREEMPTED and latest_step(workdir) == 10
    assert list((workdir / "checkpoints").glob("*tmp*")), "a save that was cut short"


def test_signals_are_read_while_the_main_thread_is_elsewhere():
    program = "import time; from walt.training.preemption import watching\nwith watching():\n print(1, flush=True); time.sleep(60)"
    [process] = jobs.start(["-c", program], 1)
    process.stdout.readline()
    [ended] = end(process, seconds=10)
    assert ended.status == PREEMPTED and "nothing to save" in ended.errors


@pytest.mark.parametrize("start", ["walt.cli.main(['train'])", "runpy.run_module('walt.train', run_name='__main__')"])
def test_a_signal_while_the_program_is_imported_is_no_other(start):
    program = f"""
import runpy, sys, time, walt.cli
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "absl":
            print(1, flush=True); time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.argv[1:] = []
{start}
"""
    [process] = jobs.start(["-c", program], 1)
    assert process.stdout.readline() == "1\n", process.communicate()
    [ended] = end(process, seconds=10)
    assert ended.status == PREEMPTED


class Metadata(http.server.BaseHTTPRequestHandler):
    """Those of a machine that is taken away when `gone` is set."""

    gone, asked = threading.Event(), []

    def do_GET(self):
        self.asked.append(self.path)
        if "wait_for_change=true" in self.path:
            self.gone.wait(10)
        self.send_response(200 if self.headers["Metadata-Flavor"] == "Google" else 403)
        self.end_headers()
        self.wfile.write(b"TRUE" if self.gone.is_set() else b"FALSE")


def test_the_notice_of_a_machine_is_a_first_signal(monkeypatch):
    with http.server.ThreadingHTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        with StopSignal(ends=False) as stop:
            assert not stop.wait(0.5) and Metadata.asked, "there is time yet"
            Metadata.gone.set()
            assert stop.wait(5) and stop.agreed(3)
            os.kill(os.getpid(), signal.SIGTERM)  # when the machine shuts down; this process is there to tell
            time.sleep(0.2)
        server.shutdown()
    assert [path.rpartition("/")[2] for path in Metadata.asked] == [
        "preempted?wait_for_change=false&timeout_sec=60",
        "preempted?wait_for_change=true&timeout_sec=60",
    ]


def test_where_there_is_no_notice_none_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(notice, "PRODUCT", tmp_path / "absent")
    notice.wait(lambda: pytest.fail("there was none"))


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before[1])
    with StopSignal(ends=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5) and stop.received == signal.SIGTERM and stop.agreed(3)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before[0]
    assert signal.set_wakeup_fd(-1) == before[1]
