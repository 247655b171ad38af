"""launch/tpu_vm.sh and worker.sh: what they would ask of gcloud, and whole runs on hosts that are folders, with preemptions."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest

COMMAND = [
    "walt",
    "train",
    "--config=t2v/base_3b",
    "--workdir=gs://bucket/it's a run",
    "--config.training.mesh.fsdp=16",
]
PLACE = ["--zone=us-east5-a", "--project=p"]
POD = ["--topology=v5p:2x2x2", *PLACE]  # two hosts
WAITING = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
ON_ALL = ["--quiet", "--node=all", "--worker=all"]
GCLOUD = ["gcloud", "compute", "tpus", "queued-resources"]


def dry_run(launcher, verb, *flags):
    result = launcher.run("tpu_vm.sh", verb, "--dry_run", *flags)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line, comments=True) for line in result.stdout.splitlines() if not line.startswith("#")]


def watch(launcher, *flags, command=COMMAND):
    return launcher.run("tpu_vm.sh", "watch", *POD, "--patience=4", *flags, "--", *command)


def verbs(launcher):
    """The verbs asked of gcloud, without the many that only look."""
    return [call[0] for call in launcher.calls() if call[0] != "describe" and "worker.sh state" not in call[-1]]


def create_flags(*, tier=(), nodes=("--node-id=walt",), kind="v5p-16", image="v2-alpha-tpuv5"):
    scopes = "--scopes=https://www.googleapis.com/auth/cloud-platform"
    return ["create", "walt", *PLACE, *nodes, f"--accelerator-type={kind}", f"--runtime-version={image}", *tier, scopes]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (POD, create_flags()),
        ([*POD, "--provisioning=spot"], create_flags(tier=["--spot"])),
        ([*POD, "--provisioning=reserved"], create_flags(tier=["--reserved"])),
        ([*POD, "--runtime_version=tpu-next"], create_flags(image="tpu-next")),
        ([*POD, "--num_slices=3"], create_flags(nodes=("--node-count=3", "--node-prefix=walt"))),
        (["--topology=v4:2x2x4", *PLACE], create_flags(kind="v4-32", image="tpu-ubuntu2204-base")),
        (["--topology=v5e:4x4", *PLACE], create_flags(kind="v5litepod-16", image="v2-alpha-tpuv5-lite")),
        (["--topology=v5p:4x4x8", *PLACE], create_flags(kind="v5p-256")),
        (["--topology=v6e:2x4", *PLACE], create_flags(kind="v6e-8", image="v2-alpha-tpuv6e")),
    ],
)
def test_dry_run_of_create(launcher, flags, expected):
    assert dry_run(launcher, "create", *flags) == [[*GCLOUD, *expected]]


def test_dry_run_of_the_other_verbs(launcher):
    ssh = [*GCLOUD, "ssh", "walt", *PLACE]
    worker = "--command=bash walt/source/launch/worker.sh"
    assert dry_run(launcher, "delete", *POD) == [[*GCLOUD, "delete", "walt", *PLACE, "--force", "--quiet"]]
    assert dry_run(launcher, "stop", *POD) == [[*ssh, *ON_ALL, f"{worker} stop"]]
    assert dry_run(launcher, "logs", *PLACE, "--node=1", "--worker=2") == [
        [*ssh, "--quiet", "--node=1", "--worker=2", f"{worker} log"]
    ]
    assert dry_run(launcher, "status", *PLACE) == [
        [*GCLOUD, "describe", "walt", *PLACE, "--format=value(state.state)"],
        [*ssh, *ON_ALL, f"{worker} state"],
    ]
    _, tar, copy, unpack, install = dry_run(launcher, "install", *PLACE, "--bucket=data")
    archive = tar[2]
    assert tar[:2] == ["tar", "-czf"] and {"setup.py", "walt", "configs", "launch"} <= set(tar)
    assert copy == [*GCLOUD, "scp", archive, "walt:walt-source.tar.gz", *PLACE, *ON_ALL]
    assert unpack[:-1] == [*ssh, *ON_ALL] and "tar -xzf walt-source.tar.gz -C walt/source" in unpack[-1]
    assert install == [*ssh, *ON_ALL, f"{worker} install data"]
    (run,) = dry_run(launcher, "run", *POD, "--", *COMMAND)
    assert run[:-1] == [*ssh, *ON_ALL]
    assert shlex.split(run[-1].partition("=")[2])[4:] == COMMAND, "the very command that was typed"
    assert launcher.calls() == [], "and nothing was asked"


def test_dry_run_of_watch_is_every_step(launcher):
    steps = dry_run(launcher, "watch", *POD, "--delete_when_done", "--", *COMMAND)
    assert [step[4] for step in steps if step[0] == "gcloud"] == ["create", "scp", *["ssh"] * 4, "delete", "delete"]
    (run,) = dry_run(launcher, "run", *POD, "--", *COMMAND)
    assert run in steps and [*GCLOUD, *create_flags()] in steps


def test_flags_come_from_variables_too(launcher):
    variables = {"WALT_TOPOLOGY": "v5p:2x2x2", "CLOUDSDK_COMPUTE_ZONE": "us-east5-a", "WALT_PROJECT": "p"}
    result = launcher.run("tpu_vm.sh", "create", "--dry_run", **variables)
    assert shlex.split(result.stdout) == [*GCLOUD, *create_flags()]
    assert "v6e-16" in launcher.run("tpu_vm.sh", "create", "--dry_run", "--topology=v6e:4x4", **variables).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "there is no verb fly; there are watch create install run status logs stop delete"),
        (["create", "--zone"], "--zone needs a value"),
        (["create", "--zone="], "--zone needs a value"),
        (["create", "--zones=a"], "there is no flag --zones; there are --name"),
        (["create", "v5e:4x4"], "unexpected argument v5e:4x4"),
        (["create", "--topology=v5e:4x4"], "--zone is missing"),
        (["create", *PLACE], "--topology is missing"),
        (["create", *PLACE, "--topology=v9:4x4"], "of no known TPU: use one of v4, v5e, v5p, v6e, tpu7x"),
        (["create", *PLACE, "--topology=v5e:4x5"], "no shape of v5e, which comes in 1x1 2x2 2x4 4x4"),
        (["create", *PLACE, "--topology=v5p:4x8x4"], "no shape of v5p"),
        (["create", *PLACE, "--topology=v5p:4x4x12"], "TPU VMs come in no shape v5p:4x4x12: use launch/gke/submit.sh"),
        (["create", *PLACE, "--topology=tpu7x:4x4x4"], "there are no TPU VMs of tpu7x:4x4x4: use launch/gke/submit.sh"),
        (["create", *POD, "--num_slices=0"], "--num_slices=0 must be a number from 1 on"),
        (["create", *POD, "--name=My_Run"], "--name=My_Run must be lowercase"),
        (["create", *POD, "--provisioning=cheap"], "is none of on_demand, spot, reserved"),
        (["logs", *POD, "--worker=all"], "--worker=all must be a number from 0 on"),
        (["stop", *POD, "--", "walt"], "stop takes no command"),
        (["run", *POD], "after -- comes the command as it would be run here"),
        (["run", *POD, "--", "train"], "such as walt train --config=t2v/base_3b --workdir=gs://BUCKET/RUN, got train"),
        (["run", *POD, "--", "walt", "serve"], "got walt serve"),
        (["watch", *POD, "--", "walt", "train", "--config=a"], "walt train needs --workdir=gs://BUCKET/RUN"),
        (
            ["watch", *POD, "--", *COMMAND, "--workdir=runs/a"],
            "--workdir=runs/a would lie on disks that are not shared",
        ),
        (["watch", *POD, "--", *COMMAND, "--workdir", "runs/a"], "--workdir=runs/a would lie on disks"),
        (
            ["run", *PLACE, "--topology=v5e:2x2", "--provisioning=spot", "--", *COMMAND, "--workdir=runs/a"],
            "--workdir=runs/a would lie on disks that are not shared and do not last",
        ),
        (
            ["run", *POD, "--", *COMMAND, "--config.data.path=data/a"],
            "--config.data.path=data/a is a path of this machine",
        ),
        (["run", *POD, "--", *COMMAND, "--config=mine.py:mini"], "--config=mine.py:mini is a file of this machine"),
        (["create", *POD], "gcloud was not found on PATH"),
    ],
)
def test_bad_input_is_one_sentence(launcher, arguments, message):
    result = launcher.run("tpu_vm.sh", *arguments)
    assert result.returncode == 1 and message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ") and not result.stdout


def test_results_may_lie_on_the_disk_of_one_host_that_stays(launcher):
    local = ["walt", "train", "--config=a", "--workdir=runs/a", "--config.autoencoder_path=mini"]
    dry_run(launcher, "run", "--topology=v5e:2x2", *PLACE, "--", *local)
    dry_run(launcher, "run", *POD, "--", *COMMAND, "--config.init_from.path=mini", "--config.data.path=/gcs/b/data")


def test_no_python(launcher):
    (launcher.bin / "python3").unlink()
    result = launcher.run("tpu_vm.sh", "create", *POD)
    assert result.returncode == 1 and result.stderr.startswith("error: Python 3.11 or newer is needed")


def test_watch_waits_installs_runs_and_ends(launcher):
    launcher.gcloud(WAITING)
    result = watch(launcher, "--num_slices=2")
    assert result.returncode == 0, result.stderr
    assert verbs(launcher) == ["create", "scp", "ssh", "ssh", "ssh"]
    hosts = sorted(f"{node}-{worker}" for node in range(2) for worker in range(2))
    assert sorted(launcher.lines("started")) == hosts
    assert [json.loads(line) for line in launcher.lines("arguments")] == [COMMAND[1:]] * 4
    assert sorted(launcher.lines("installed")) == [f"{host} ~/walt/source" for host in hosts]
    assert (
        "the command has ended well" in result.stdout
        and "cost money until launch/tpu_vm.sh delete --name=walt" in result.stdout
    )


def test_watch_gives_the_tpus_back_when_asked(launcher):
    launcher.gcloud(["ACTIVE"])
    assert watch(launcher, "--delete_when_done").returncode == 0
    assert verbs(launcher)[-1] == "delete"


def test_a_preempted_request_is_made_again_and_the_command_goes_on(launcher):
    launcher.gcloud([*WAITING, *["ACTIVE"] * 3, "SUSPENDING", "SUSPENDED"], WAITING, fate="trains 0")
    result = watch(launcher, "--provisioning=spot")
    assert result.returncode == 0, result.stderr
    once = ["create", "scp", "ssh", "ssh", "ssh"]
    assert verbs(launcher) == [*once, "delete", *once]
    created = [call for call in launcher.calls() if call[0] == "create"]
    assert created == [create_flags(tier=["--spot"])] * 2
    starts = [call[-1] for call in launcher.calls() if "worker.sh start" in call[-1]]
    assert len(starts) == 2 and starts[0] == starts[1]
    assert "preempted: deleting walt, to ask for the same TPUs again" in result.stdout


def test_a_command_that_was_preempted_is_started_again(launcher):
    launcher.gcloud(["ACTIVE"], fate="75 75 0")
    result = watch(launcher)
    assert result.returncode == 0, result.stderr
    assert verbs(launcher) == ["create", "scp", "ssh", "ssh", *["ssh"] * 3], "not installed again, not deleted"
    assert launcher.lines("started").count("0-0") == 3
    assert result.stdout.count("was preempted and has saved its state") == 2


def test_a_command_that_only_gets_preempted_is_given_up(launcher):
    launcher.gcloud(["ACTIVE"], fate=" ".join(["75"] * 20))
    result = watch(launcher)
    assert result.returncode == 1
    assert result.stderr == "error: the command was preempted 4 times and never seen running between.\n"


def test_hosts_that_do_not_end_with_the_others_are_stopped(launcher):
    launcher.gcloud(["ACTIVE"], fate="75 0")
    launcher.fate("trains 0", host="0-1")
    result = watch(launcher)
    assert result.returncode == 0, result.stderr
    assert "the command has ended on 1 of 2 hosts" in result.stdout
    assert any(call[-1].endswith("worker.sh stop") for call in launcher.calls())
    assert launcher.lines("started").count("0-1") == 2


def test_a_failed_command_ends_with_its_log(launcher):
    launcher.gcloud(["ACTIVE"], fate="0")
    launcher.fate("3", host="0-1")
    result = watch(launcher)
    assert result.returncode == 1
    assert "0-1: the log of 0-1" in result.stderr and "the log of 0-0" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the command failed; the TPUs of walt are still there")
    assert "delete" not in verbs(launcher) and launcher.lines("started").count("0-1") == 1


def test_a_failure_while_hosts_are_being_taken_away_is_a_preemption(launcher):
    launcher.gcloud([*["ACTIVE"] * 2, "SUSPENDED"], ["ACTIVE"], fate="134 0")
    result = watch(launcher, "--provisioning=spot")
    assert result.returncode == 0, result.stderr
    assert verbs(launcher).count("delete") == 1


def test_silent_hosts(launcher):
    launcher.gcloud(["ACTIVE"], silent=["0-1"])
    result = watch(launcher)
    assert result.returncode == 1 and "1 of 2 hosts of walt do not answer; nothing was deleted" in result.stderr
    assert "1 of 2 hosts answer" in result.stdout and "delete" not in verbs(launcher)


def test_what_a_command_leaves_behind_is_ended_and_not_taken_for_it(launcher):
    launcher.gcloud(["ACTIVE"], fate="lingers")
    result = watch(launcher)
    assert result.returncode == 0 and "the command has ended well" in result.stdout, result.stderr
    assert not any("stop" in call[-1] for call in launcher.calls())
    for pid in (launcher.cloud / "hosts").glob("*/walt/run/pid"):
        group = subprocess.run(["ps", "-o", "stat=", "-s", pid.read_text().strip()], capture_output=True, text=True)
        assert not [line for line in group.stdout.split() if line[0] != "Z"]


def test_silent_spot_hosts_are_given_up(launcher):
    launcher.gcloud(["ACTIVE"], ["FAILED"], silent=["0-1"])
    result = watch(launcher, "--provisioning=spot")
    assert verbs(launcher) == ["create", "delete", "create"] and "hosts do not answer: deleting walt" in result.stdout
    assert result.returncode == 1 and result.stderr.startswith("error: the request failed")


def test_watch_joins_a_command_that_runs(launcher):
    launcher.gcloud(["ACTIVE"], fate="trains")
    launcher.run("tpu_vm.sh", "create", *POD)
    assert launcher.run("tpu_vm.sh", "install", *PLACE).returncode == 0
    assert launcher.run("tpu_vm.sh", "run", *POD, "--", *COMMAND).returncode == 0, "returns while the command runs"
    status = launcher.run("tpu_vm.sh", "status", *PLACE).stdout.splitlines()
    assert status[0] == "ACTIVE" and len(status) == 3 and all(line.endswith(" running") for line in status[1:])

    again = launcher.run("tpu_vm.sh", "run", *POD, "--", *COMMAND)
    assert again.returncode and "error: 0-0: a command is running already: stop it first." in again.stderr
    other = watch(launcher, command=[*COMMAND, "--config.seed=1"])
    assert other.returncode == 1 and "another command is running on walt: stop it first" in other.stderr

    assert launcher.run("tpu_vm.sh", "stop", *PLACE).returncode == 0
    status = launcher.run("tpu_vm.sh", "status", *PLACE).stdout.splitlines()
    assert all(line.endswith(" ended stopped") for line in status[1:])
    launcher.fate("0 0")
    assert watch(launcher).returncode == 0, "goes on where it was stopped"
    assert launcher.lines("started").count("0-0") == 2


def test_hosts_that_restarted_start_the_command_again(launcher):
    launcher.gcloud(["ACTIVE"], fate="vanishes 0")
    result = watch(launcher)
    assert result.returncode == 0, result.stderr
    assert launcher.lines("started").count("0-0") == 2
    assert verbs(launcher).count("scp") == 1


def test_watch_with_another_number_of_hosts(launcher):
    launcher.gcloud(["ACTIVE"])
    launcher.run("tpu_vm.sh", "create", *POD, "--num_slices=2")
    message = "error: walt has 4 hosts and not 2: it was made with another --topology or --num_slices.\n"
    assert watch(launcher).stderr == message and not launcher.lines("started")


def test_run_needs_tpus_and_the_package(launcher):
    launcher.gcloud(["PROVISIONING", "ACTIVE"])
    assert "walt is NONE and not ACTIVE" in launcher.run("tpu_vm.sh", "run", *POD, "--", *COMMAND).stderr
    launcher.run("tpu_vm.sh", "create", *POD)
    assert "walt is PROVISIONING and not ACTIVE" in launcher.run("tpu_vm.sh", "install", *PLACE).stderr
    assert launcher.run("tpu_vm.sh", "run", *POD, "--", *COMMAND).returncode != 0


def test_an_installation_that_fails_is_tried_again_and_given_up(launcher):
    launcher.gcloud(["ACTIVE"])
    (launcher.cloud / "no_packages").touch()
    result = watch(launcher)
    assert result.returncode == 1 and "error: 0-0: the package could not be installed." in result.stderr
    assert result.stderr.splitlines()[-1] == "error: installing on walt failed 4 times; the messages are above."
    assert not launcher.lines("started")


@pytest.mark.parametrize(
    ("states", "broken", "message"),
    [
        (["FAILED"], "", "error: the request failed: gcloud compute tpus queued-resources describe walt"),
        (["ACTIVE"], "create", "error: the TPUs cannot be had; gcloud says why above."),
        (["ACTIVE"], "describe", "error: gcloud cannot say how walt is."),
    ],
)
def test_watch_ends_when_the_cloud_refuses(launcher, states, broken, message):
    launcher.gcloud(states, broken=broken)
    result = watch(launcher)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith(message)
