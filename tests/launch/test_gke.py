"""launch/gke: the manifest against JobSet's schema, what it says about failures, and how it gets to kubectl."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import pytest

COMMAND = [
    "walt",
    "train",
    "--config=t2v/base_3b",
    "--workdir=gs://bucket/it's a run",
    "--config.training.mesh.fsdp=16",
]
POD = ["--topology=v5p:4x4x8", "--image=registry/walt:1"]
SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())


def manifest(launcher, *flags, command=COMMAND):
    result = launcher.run("gke/submit.sh", *flags, "--dry_run", "--", *command)
    assert result.returncode == 0, result.stderr
    first, *lines, last = result.stdout.splitlines()
    assert (first, last) == ("kubectl create -f - <<'JOBSET'", "JOBSET"), "what is printed can be pasted"
    found = json.loads("\n".join(lines))
    jsonschema.validate(found, SCHEMA)
    return found


def job_of(found):
    (replicated,) = found["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def pod_of(found):
    return job_of(found)["template"]["spec"]


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "label"),
    [
        ("v4:2x2x4", 4, 4, "tpu-v4-podslice"),
        ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice"),
        ("v5p:4x4x12", 48, 4, "tpu-v5p-slice"),
        ("v6e:1x1", 1, 1, "tpu-v6e-slice"),
        ("tpu7x:4x4x4", 16, 4, "tpu7x"),
    ],
)
def test_a_slice_is_a_job_and_a_host_a_pod(launcher, topology, hosts, chips, label):
    found = manifest(launcher, f"--topology={topology}", "--image=i")
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert (job_of(found)["parallelism"], job_of(found)["completions"]) == (hosts, hosts)
    assert pod_of(found)["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert pod_of(found)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }


def test_the_command_is_the_one_typed_here(launcher):
    container = pod_of(manifest(launcher, *POD))["containers"][0]
    assert container["command"] == COMMAND and "args" not in container and container["image"] == "registry/walt:1"


def test_preemptions_start_again_uncounted_and_failures_counted(launcher):
    found = manifest(launcher, *POD, "--max_restarts=5", "--grace_seconds=900")
    policy, rules = found["spec"]["failurePolicy"], job_of(found)["podFailurePolicy"]["rules"]
    assert policy["maxRestarts"] == 5
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    ]
    assert [rule["action"] for rule in rules] == ["FailJob", "FailJob"]
    assert rules[0]["onExitCodes"]["values"] == [75] and rules[0]["onExitCodes"]["operator"] == "In"
    assert rules[1]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert job_of(found)["backoffLimit"] == 0 and pod_of(found)["restartPolicy"] == "Never"
    assert pod_of(found)["terminationGracePeriodSeconds"] == 900


def test_several_slices_each_on_a_node_pool_of_its_own(launcher):
    found = manifest(launcher, *POD, "--num_slices=4", "--queue=team", "--name=big", "--namespace=research")
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 4
    variables = {variable["name"]: variable for variable in pod_of(found)["containers"][0]["env"]}
    assert variables["MEGASCALE_NUM_SLICES"]["value"] == "4"
    paths = {name: v["valueFrom"]["fieldRef"]["fieldPath"] for name, v in variables.items() if "valueFrom" in v}
    assert paths == {
        "MEGASCALE_SLICE_ID": "metadata.annotations['jobset.sigs.k8s.io/job-index']",
        "MEGASCALE_COORDINATOR_ADDRESS": "metadata.annotations['jobset.sigs.k8s.io/coordinator']",
    }
    assert found["spec"]["coordinator"] == {"replicatedJob": "slice", "jobIndex": 0, "podIndex": 0}
    assert "env" not in pod_of(manifest(launcher, *POD))["containers"][0], "one slice needs none"
    metadata = found["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("big", "research")
    assert metadata["labels"] == {"gcluster.google.com/workload": "big", "kueue.x-k8s.io/queue-name": "team"}
    assert metadata["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == "cloud.google.com/gke-nodepool"
    assert "kueue.x-k8s.io/queue-name" not in manifest(launcher, *POD)["metadata"]["labels"]


def test_kinds_of_nodes_and_buckets(launcher):
    spot = pod_of(manifest(launcher, *POD, "--provisioning=spot"))
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"google.com/tpu", "cloud.google.com/gke-spot"} == {toleration["key"] for toleration in spot["tolerations"]}
    reserved = pod_of(manifest(launcher, *POD, "--provisioning=reserved", "--reservation=ours"))
    assert reserved["nodeSelector"]["cloud.google.com/reservation-name"] == "ours"
    found = manifest(launcher, *POD, "--bucket=data", "--service_account=trainer")
    assert job_of(found)["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod_of(found)["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "data"
    assert pod_of(found)["containers"][0]["volumeMounts"][0]["mountPath"] == "/gcs/data"
    assert pod_of(found)["serviceAccountName"] == "trainer"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m["spec"]["failurePolicy"]["rules"][0].pop("name"),
        lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
        lambda m: m["spec"].update(parallelism=1),
        lambda m: job_of(m).update(backOffLimit=0),
        lambda m: job_of(m)["podFailurePolicy"]["rules"][1]["onPodConditions"][0].pop("status"),
        lambda m: job_of(m)["podFailurePolicy"]["rules"][0].update(action="Restart"),
        lambda m: pod_of(m).update(nodeSelector={"a": True}),
        lambda m: pod_of(m).pop("containers"),
        lambda m: pod_of(m)["containers"][0].update(command="walt train"),
        lambda m: m.update(apiVersion="jobset.x-k8s.io/v1alpha1"),
    ],
)
def test_the_schema_refuses_what_kubernetes_would(launcher, break_it):
    found = manifest(launcher, *POD)
    break_it(found)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --topology, --image"),
        (["--image=i", "--topology"], "expected one argument"),
        ([*POD, "--num_slice=2"], "unrecognized arguments: --num_slice=2"),
        ([*POD, "--num_slices=two"], "invalid int value: 'two'"),
        ([*POD, "--num_slices=0"], "--num_slices=0 must be at least 1"),
        ([*POD, "--name=Big"], "--name=Big must be lowercase"),
        ([*POD, "--provisioning=reserved"], "--provisioning=reserved and --reservation=NAME go together"),
        (["--image=i", "--topology=v9:4x4", "--", *COMMAND], "use one of v4, v5e, v5p, v6e, tpu7x"),
        (
            ["--image=i", "--topology=v5e:2x2", "--num_slices=2", "--", *COMMAND],
            "GKE joins only slices of several hosts",
        ),
        (POD, "after -- comes the command as it would be run here"),
        ([*POD, "--", *COMMAND, "--workdir=runs/a"], "--workdir=runs/a would lie on disks that are not shared"),
        ([*POD, "--", *COMMAND, "--config.autoencoder_path=runs/a"], "is a path of this machine"),
        ([*POD, "--", *COMMAND], "kubectl was not found on PATH"),
    ],
)
def test_bad_input_is_one_sentence(launcher, arguments, message):
    result = launcher.run("gke/submit.sh", *arguments)
    assert result.returncode == 1 and message in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if not line.startswith("needs ")]
    assert len(errors) == 1 and errors[0].startswith("error: ") and not result.stdout


KUBECTL = """#!/usr/bin/env bash
echo "$*" >>"$CLOUD/kubectl"
case "$1" in
  get) exit {status} ;;
  create) cat >"$CLOUD/manifest" ;;
esac
"""


def test_submission(launcher):
    launcher.program("kubectl", KUBECTL.format(status=0))
    result = launcher.run("gke/submit.sh", *POD, "--num_slices=2", "--namespace=research", "--", *COMMAND)
    assert result.returncode == 0, result.stderr
    assert launcher.lines("kubectl") == ["get customresourcedefinition jobsets.jobset.x-k8s.io", "create -f -"]
    sent = json.loads((launcher.cloud / "manifest").read_text())
    assert sent == manifest(launcher, *POD, "--num_slices=2", "--namespace=research")
    assert result.stderr == "needs 2 node pools of 32 ct5p-hightpu-4t with topology 4x4x8\n"
    for line in result.stdout.splitlines():
        words = shlex.split(line.partition(":")[2])
        assert words[0] == "kubectl" and "--namespace=research" in words


def test_a_cluster_without_jobset(launcher):
    launcher.program("kubectl", KUBECTL.format(status=1))
    result = launcher.run("gke/submit.sh", *POD, "--", *COMMAND)
    assert result.returncode == 1 and "error: the cluster that kubectl is connected to has no JobSet" in result.stderr
    assert len(launcher.lines("kubectl")) == 1, "nothing was created"
