"""How processes find each other, what they say when they do not, and that all of them end when one fails."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import jax
import jobs
import pytest

from walt import command, parallel
from walt.config import ConfigError
from walt.parallel import processes

LINEAR = str(Path(__file__).parents[1] / "training" / "linear.py")
SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "a,b",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "2",
}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.fixture
def joined(monkeypatch):
    """What JAX is asked to join, in an environment that is otherwise that of a laptop."""
    asked = []
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES", *SLURM, *OPEN_MPI):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "_has_google_device", lambda: False)
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *place, **seconds: asked.append((place, seconds["heartbeat_timeout_seconds"])),
    )
    return asked


def test_a_laptop_joins_nobody(joined):
    parallel.initialize()
    assert joined == [] and processes._job is None


@pytest.mark.parametrize(
    "environment",
    [
        SLURM,
        OPEN_MPI,
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"TPU_PROCESS_ADDRESSES": "a:1,b:1"},
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
    ],
)
def test_clusters_are_found_by_their_environment(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parallel.initialize(heartbeat_timeout=7)
    assert joined == [((None, None, None), 7)]
    parallel.initialize(num_processes=1)  # this host alone
    assert len(joined) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {**SLURM, "SLURM_NTASKS": "1"},
        {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"},  # a shell of an allocation
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"},
    ],
)
def test_what_is_no_job_of_several_is_not_taken_for_one(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    parallel.initialize()
    assert joined == []


def test_a_tpu_vm_asks_jax_and_goes_on_alone_if_there_are_no_others(joined, monkeypatch):
    monkeypatch.setattr(processes, "_has_google_device", lambda: True)
    parallel.initialize()
    assert joined == [((None, None, None), 100)]

    def nobody(*place, **seconds):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    parallel.initialize()
    with pytest.raises(ConfigError, match="process 1 could not join the others at a:1"):
        parallel.initialize("a:1", 2, 1)
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(ConfigError, match="this process could not join the others: coordinator_address"):
        parallel.initialize()


def test_google_devices_are_known_by_their_vendor(tmp_path):
    for device, vendor in (("0", "0x8086"), ("1", "0x1ae0")):
        assert not processes._has_google_device(tmp_path)
        (tmp_path / device).mkdir()
        (tmp_path / device / "vendor").write_text(f"{vendor}\n")
    assert processes._has_google_device(tmp_path)


def test_flags_come_before_environment_variables(joined, monkeypatch):
    for name, value in {"COORDINATOR_ADDRESS": "a:1", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}.items():
        monkeypatch.setenv(f"JAX_{name}", value)
    parallel.initialize()
    parallel.initialize(coordinator_address="b:2", process_id=0)
    assert [place for place, _ in joined] == [("a:1", 4, 3), ("b:2", 4, 0)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "num_processes given, but no coordinator_address"),
        ({"process_id": 0}, "process_id given, but no coordinator_address"),
        ({"coordinator_address": "a:1", "num_processes": 2}, "so process_id must be given too"),
        ({"coordinator_address": "a:1", "process_id": 0}, "so num_processes must be given too"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "must be HOST:PORT .* got 'a'"),
        ({"coordinator_address": "a:0", "num_processes": 2, "process_id": 0}, "must be HOST:PORT"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "less than num_processes, 2, got 2"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": -1}, "process_id must be 0 or more"),
        ({"num_processes": 0}, "num_processes must be at least 1"),
        ({"initialization_timeout": 0}, "initialization_timeout must be at least 1 second"),
        ({"heartbeat_timeout": -1}, "heartbeat_timeout must be at least 1 second"),
    ],
)
def test_bad_input(joined, given, message):
    with pytest.raises(ConfigError, match=message):
        parallel.initialize(**given)


def test_a_variable_that_is_no_number(joined, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ConfigError, match="JAX_PROCESS_ID must be a number, got 'first'"):
        parallel.initialize()


def test_flags_are_the_same_in_every_command():
    from walt import evaluate, sample, train

    for module in (train, sample, evaluate):
        assert issubclass(module.Arguments, command.HostArguments)
    arguments = command.parse(evaluate.Arguments, ["walt evaluate", "--real=a", "--process_id=3"])
    assert arguments.process_id == 3 and arguments.heartbeat_timeout == 100


def test_a_stop_is_not_put_off_by_clocks_that_differ(monkeypatch):
    told = {}
    client = SimpleNamespace(key_value_set=told.__setitem__)
    monkeypatch.setattr(processes, "_job", processes._Job(0, 2, client))
    processes.request_stop()
    ahead = datetime.fromisoformat(told[processes.NOTICE]) - datetime.now(UTC)
    assert ahead < timedelta(days=-365), (
        "JAX sleeps until a quarter of an hour before this time, by the clock of each host"
    )


def test_a_failure_that_comes_of_the_end_of_another_process_ends_this_one_as_told(monkeypatch, capsys):
    """A collective fails as soon as the other one is gone, before this one has looked whether it shall end."""

    class Ended(Exception):
        pass

    def end(status):
        raise Ended(status)

    kept = {}
    client = SimpleNamespace(key_value_set=kept.__setitem__, key_value_try_get=kept.__getitem__)
    monkeypatch.setattr(processes, "_exit", end)
    monkeypatch.setattr(processes, "_job", processes._Job(1, 2, client))
    with pytest.raises(Ended, match="75"):
        processes.end_all("told to end while there was nothing to save", 75)
    monkeypatch.setattr(processes, "_job", processes._Job(0, 2, client))
    with pytest.raises(Ended, match="75"), processes.failing_together():
        raise RuntimeError("Gloo AllGather failed: connection closed by peer")
    assert capsys.readouterr().err.count("walt: process 1 of 2: told to end while there was nothing to save") == 2
    assert processes.FAILURE not in kept


@pytest.mark.parametrize("index", [0, 1])
def test_who_is_missing_is_said_when_the_time_is_up(index):
    program = "import sys; from walt import parallel; parallel.initialize(sys.argv[1], 2, int(sys.argv[2]), 2)"
    (process,) = jobs.ended(jobs.start(["-c", program, f"localhost:{jobs.free_port()}", str(index)], 1), 60)
    assert process.status == 1 and process.errors.count("\n") == 1, process.errors
    assert f"process {index} of 2 waited 2 seconds for the others" in process.errors


@pytest.mark.parametrize("failing", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_one_process_raises_all_end_with_its_reason(tmp_path, failing):
    settings = json.dumps({"num_steps": 1000, "checkpoint_every": 4, "log_every": 4})
    found = jobs.ended(jobs.start([LINEAR, str(tmp_path), settings], 2, own={failing: ["raise:6"]}), 100)
    for index, process in enumerate(found):
        assert process.status > 0 and process.seconds < 15, process
        assert "the disk of this host is full" in process.errors, (index, process.errors)


@pytest.mark.slow
def test_when_one_process_is_killed_all_end(tmp_path):
    settings = json.dumps({"num_steps": 1000, "seconds_per_batch": 0.05})
    found = jobs.ended(jobs.start([LINEAR, str(tmp_path), settings], 2, own={1: ["kill:6"]}), 100)
    assert found[1].status == -signal.SIGKILL
    assert found[0].status not in (0, -signal.SIGKILL) and found[0].seconds < 25, found[0]
