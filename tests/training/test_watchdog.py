"""Runs that hang: where they do is said, and those that hang for good are ended."""

import contextlib
import json
import signal
import threading
import time

import jobs
import linear
import pytest

from walt.config import ConfigError
from walt.training import watchdog
from walt.training.config import WatchdogConfig
from walt.training.folder import latest_step
from walt.training.preemption import Interrupted
from walt.training.state import Initial
from walt.training.watchdog import LOADING, Watchdog

QUICK = {"slow_factor": 5.0, "slow_seconds": 0.3}


@pytest.fixture(autouse=True)
def polls_often(monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)


def steps(dog, number, seconds=0.01):
    dog.training()
    for step in range(number):
        time.sleep(seconds)
        dog.beat(step + 1, {"loss": 0.5 * step})


def stall_here(seconds):
    time.sleep(seconds)


def test_a_step_that_takes_long_has_its_stacks_written_once(tmp_path, capsys):
    with Watchdog(tmp_path, WatchdogConfig(**QUICK), 0) as dog:
        steps(dog, 10)
        assert not (tmp_path / "stacks.0.txt").exists()
        stall_here(1.0)
        dog.beat(11, {"loss": 7.0})
    text = (tmp_path / "stacks.0.txt").read_text()
    assert text.count("no step was done for") == 1 and "after step 10" in text
    assert '"loss": 4.5' in text and "stall_here" in text and "in polls" not in text
    assert "stall_here" in capsys.readouterr().err


def test_the_stacks_of_a_run_in_a_bucket_are_all_kept(bucket):
    dog = Watchdog("gs://runs/film", WatchdogConfig(), 0)
    for reason in ("first", "second"):
        dog._report(reason)
    text = (bucket.folder / "runs" / "film" / "stacks.0.txt").read_text()
    assert text.index(" first\n") < text.index(" second\n")


def test_a_bucket_that_does_not_answer_ends_no_watch(bucket, caplog):
    reasons = []
    bucket.down = True
    with Watchdog("gs://runs/film", WatchdogConfig(fail_seconds=0.2), 3, reasons.append) as dog:
        dog.start_heartbeat()
        stall_here(0.6)
    assert "nothing has happened for" in reasons[0]
    assert caplog.text.count("heartbeat.0.json could not be written: 503") == 2  # the first and the last


@pytest.mark.parametrize("hanging", ["_write_heartbeat", "_write_stacks"])
def test_storage_that_hangs_hides_no_hang(tmp_path, monkeypatch, hanging):
    """Nor does it hold up the end of a run."""
    reasons, released, began = [], threading.Event(), time.monotonic()
    monkeypatch.setattr(watchdog, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(Watchdog, hanging, lambda self, *text: released.wait())
    with Watchdog(tmp_path, WatchdogConfig(fail_seconds=0.3, heartbeat_seconds=0.1), 3, reasons.append) as dog:
        dog.start_heartbeat()
        stall_here(1.0)
    assert "nothing has happened for" in reasons[0] and time.monotonic() - began < 5
    released.set()


def test_storage_that_is_slow_hides_no_hang(tmp_path, monkeypatch):
    reasons = []
    monkeypatch.setattr(Watchdog, "_write_heartbeat", lambda self: time.sleep(0.4))
    with Watchdog(tmp_path, WatchdogConfig(fail_seconds=0.5, heartbeat_seconds=0.01), 3, reasons.append) as dog:
        dog.start_heartbeat()
        stall_here(1.2)
    assert reasons


def test_whatever_goes_wrong_in_the_watchdog_is_said_once_and_it_goes_on(tmp_path, caplog):
    looks = []

    def look(now):
        looks.append(now)
        raise RuntimeError("wrong")

    with Watchdog(tmp_path, WatchdogConfig(), 3) as dog:
        dog._look = look
        stall_here(0.5)
    assert len(looks) > 1 and caplog.text.count("the watchdog goes on, after RuntimeError: wrong") == 1


def test_a_loader_that_starves_is_called_so(tmp_path):
    with Watchdog(tmp_path, WatchdogConfig(**QUICK), 0) as dog:
        steps(dog, 10)
        with dog.during(LOADING):
            stall_here(0.8)
    assert "the loader has given no batch for" in (tmp_path / "stacks.0.txt").read_text()


def test_what_has_no_usual_time_is_not_slow(tmp_path):
    with Watchdog(tmp_path, WatchdogConfig(**QUICK), 0) as dog:
        stall_here(0.5)  # compiling
        steps(dog, 10)
        with dog.during("evaluating"):
            stall_here(0.8)
        time.sleep(0.1)
        dog.beat(11, {})
    assert not (tmp_path / "stacks.0.txt").exists()
    with Watchdog(tmp_path, WatchdogConfig(slow_factor=None), 0) as dog:
        steps(dog, 10)
        stall_here(0.5)
    assert not (tmp_path / "stacks.0.txt").exists()


@pytest.mark.parametrize("phase", ["training", "evaluating"])
def test_a_run_that_hangs_for_good_fails(tmp_path, phase):
    reasons = []
    with Watchdog(tmp_path, WatchdogConfig(fail_seconds=0.5), 3, reasons.append) as dog:
        dog.training()
        with dog.during(phase):
            stall_here(1.2)
    [reason] = reasons
    assert f"after step 3 ({phase}), so the run has failed; where it hangs stands in {tmp_path}/stacks.0.txt" in reason
    assert "stall_here" in (tmp_path / "stacks.0.txt").read_text()


def test_the_heartbeat_tells_a_run_that_hangs_from_one_that_is_gone(tmp_path):
    with Watchdog(tmp_path, WatchdogConfig(heartbeat_seconds=0.05), 0) as dog:
        dog.start_heartbeat()
        steps(dog, 3)
        time.sleep(0.4)
        before = json.loads((tmp_path / "heartbeat.0.json").read_text())
        time.sleep(0.4)
        after = json.loads((tmp_path / "heartbeat.0.json").read_text())
    assert before["step"] == after["step"] == 3 and before["step_time"] == after["step_time"]
    assert after["time"] > before["time"] + 0.2 and after["phase"] == "training"


@pytest.mark.parametrize(("error", "phase"), [(None, "finished"), (Interrupted(signal.SIGTERM), "stopped")])
def test_the_last_heartbeat_says_how_a_run_ended(tmp_path, error, phase):
    with contextlib.suppress(Interrupted), Watchdog(tmp_path, WatchdogConfig(heartbeat_seconds=60), 0) as dog:
        dog.start_heartbeat()
        steps(dog, 3)
        if error:
            raise error
    last = json.loads((tmp_path / "heartbeat.0.json").read_text())
    assert last["phase"] == phase and last["step"] == 3


@pytest.mark.slow
def test_a_process_whose_loader_hangs_is_ended_and_one_that_was_stopped_is_not(tmp_path):
    def start(name, **settings):
        settings |= {"num_steps": 60, "watchdog": {"fail_seconds": 3.0, "slow_seconds": 1.0, "heartbeat_seconds": 0.1}}
        return jobs.start([linear.__file__, str(tmp_path / name), json.dumps(settings)], 1)

    [hanging] = jobs.ended(start("hanging", slow={"data": 60}), 60)
    assert hanging.status == 1 and "nothing has happened for" in hanging.errors and "waiting for data" in hanging.errors
    assert "in at" in (tmp_path / "hanging" / "stacks.0.txt").read_text() and latest_step(tmp_path / "hanging") == 20
    [process] = start("stopped", seconds_per_batch=0.05)
    while not (tmp_path / "stopped" / "heartbeat.0.json").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    [stopped] = jobs.ended([process], 60)
    assert stopped.status == 0, stopped.errors


@pytest.mark.parametrize("place", ["first batch", "first state"])
def test_a_hang_before_the_first_step_is_seen_too(tmp_path, monkeypatch, place):
    failed, end = [], time.monotonic() + 30
    monkeypatch.setattr(watchdog, "end_all", lambda reason, status: failed.append(reason))

    def hang(step=0):
        while not failed:
            assert time.monotonic() < end
            time.sleep(0.05)
        return Initial()

    config = linear.make_config(watchdog=WatchdogConfig(fail_seconds=0.5))
    hangs = {"loader": linear.LinearLoader(hang=hang)} if place == "first batch" else {"on_start": hang}
    linear.run(tmp_path, config, **hangs)
    assert "nothing has happened for" in failed[0] and "after step 0 (starting)" in failed[0]


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(ConfigError, match=r"watchdog.fail_seconds must be positive"):
        WatchdogConfig(fail_seconds=0.0)
