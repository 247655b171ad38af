"""A JobSet for GKE that runs one walt command on every host of every slice; submit.sh hands it to kubectl.

    python launch/gke/jobset.py --topology=v5p:4x4x8 --num_slices=2 --image=REGISTRY/walt -- walt train --config=…

prints the manifest as JSON, which is YAML as well. One Job is one slice, and the whole set starts again together:

* a command that ends with status 75 (preempted, state saved), and pods that are evicted, preempted or drained, fail
  their Job by its podFailurePolicy, and the set restarts without counting it;
* any other failure counts, and after `--max_restarts` of them the set has failed.

Names follow the Cluster Toolkit's `gcluster job submit`, whose `job list` and `job logs` find the set by its labels.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pods import LaunchError, Slice, check_command, parse_slice

PREEMPTED = 75
"""Exit status of a command that was told to end and has saved its state."""

Manifest = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """Argument errors are `LaunchError`, so that they end as every other error here."""

    def error(self, message: str) -> NoReturn:
        raise LaunchError(message)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags, the command after --), both checked; raises `LaunchError`."""
    flags, dashes, command = list(argv), "--", []
    if dashes in flags:
        flags, command = flags[: flags.index(dashes)], flags[flags.index(dashes) + 1 :]
    parser = Parser(prog="launch/gke/submit.sh", allow_abbrev=False, usage="submit.sh --flag=value … -- walt train …")
    add = parser.add_argument
    add("--topology", required=True, help="of a slice, as for walt plan: v5p:4x4x8")
    add("--image", required=True, help="container image with walt in it, built from the Dockerfile")
    add("--num_slices", type=int, default=1, help="slices joined by the data-centre network")
    add("--name", default="walt", help="of the JobSet")
    add("--namespace", default="default", help="of the cluster")
    add("--queue", default="", help="Kueue's local queue; without it the set starts as soon as nodes are there")
    add("--service_account", default="default", help="of the pods; it needs the right to read and write the buckets")
    add("--provisioning", default="on_demand", choices=("on_demand", "spot", "reserved"), help="kind of nodes")
    add("--reservation", default="", help="name of the reservation, for --provisioning=reserved")
    add("--bucket", default="", help="mounted, to read from, at /gcs/BUCKET; needs the Cloud Storage FUSE driver")
    add("--max_restarts", type=int, default=3, help="after failures that are no preemptions")
    add("--grace_seconds", type=int, default=300, help="from the signal to end to the end, for the last checkpoint")
    arguments = parser.parse_args(flags)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", arguments.name):
        raise LaunchError(f"--name={arguments.name} must be lowercase letters, digits and dashes, at most 40")
    for name, least in (("num_slices", 1), ("max_restarts", 0), ("grace_seconds", 1)):
        if getattr(arguments, name) < least:
            raise LaunchError(f"--{name}={getattr(arguments, name)} must be at least {least}")
    if (arguments.provisioning == "reserved") != bool(arguments.reservation):
        raise LaunchError("--provisioning=reserved and --reservation=NAME go together")
    check_command(command, one_lasting_disk=False)
    return arguments, command


def manifest(arguments: argparse.Namespace, command: Sequence[str]) -> Manifest:
    """The JobSet, as kubectl takes it."""
    found = parse_slice(arguments.topology)
    if arguments.num_slices > 1 and found.hosts == 1:
        raise LaunchError(f"{found.topology} is one host, and GKE joins only slices of several hosts")
    labels = {"gcluster.google.com/workload": arguments.name}
    queue = {"kueue.x-k8s.io/queue-name": arguments.queue} if arguments.queue else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": arguments.name,
            "namespace": arguments.namespace,
            "labels": labels | queue,
            # A slice is a node pool: no other Job on it, and all pods of a Job on the same.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},  # the headless service
            "failurePolicy": {
                "maxRestarts": arguments.max_restarts,
                "restartStrategy": "BlockingRecreate",  # old pods hold the chips and the checkpoint until they end
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "coordinator": {"replicatedJob": "slice", "jobIndex": 0, "podIndex": 0},
            "ttlSecondsAfterFinished": 7 * 24 * 3600,
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": arguments.num_slices,
                    "template": {"spec": job(arguments, found, command, labels)},
                }
            ],
        },
    }


def job(arguments: argparse.Namespace, found: Slice, command: Sequence[str], labels: dict[str, str]) -> Manifest:
    """The Job of one slice: a pod on each of its hosts."""
    preempted = {"onExitCodes": {"containerName": "walt", "operator": "In", "values": [PREEMPTED]}}
    disrupted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "parallelism": found.hosts,
        "completions": found.hosts,
        "completionMode": "Indexed",  # GKE numbers the hosts of a slice by it
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", **rule} for rule in (preempted, disrupted)]},
        "template": {
            "metadata": {
                "labels": labels,
                **({"annotations": {"gke-gcsfuse/volumes": "true"}} if arguments.bucket else {}),
            },
            "spec": pod(arguments, found, command),
        },
    }


def pod(arguments: argparse.Namespace, found: Slice, command: Sequence[str]) -> Manifest:
    """The pod of one host; GKE adds TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, by which JAX finds the others of the slice."""
    chips = {"google.com/tpu": found.chips_per_host}
    selector = {
        "cloud.google.com/gke-tpu-accelerator": found.tpu.gke_label,
        "cloud.google.com/gke-tpu-topology": found.shape,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if arguments.provisioning == "spot":
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"})
    if arguments.reservation:
        selector["cloud.google.com/reservation-name"] = arguments.reservation
    container: Manifest = {
        "name": "walt",
        "image": arguments.image,
        "command": list(command),
        "resources": {"requests": chips, "limits": chips},
        # The devices of TPUs belong to root, and memory they reach is locked without a limit.
        "securityContext": {"privileged": True, "runAsUser": 0},
    }
    spec: Manifest = {
        "restartPolicy": "Never",  # podFailurePolicy knows no other
        "terminationGracePeriodSeconds": arguments.grace_seconds,
        "serviceAccountName": arguments.service_account,
        "hostNetwork": True,  # the full bandwidth between slices
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
    }
    if arguments.num_slices > 1:
        container["env"] = [
            {"name": "MEGASCALE_NUM_SLICES", "value": str(arguments.num_slices)},
            from_annotation("MEGASCALE_SLICE_ID", "jobset.sigs.k8s.io/job-index"),
            from_annotation("MEGASCALE_COORDINATOR_ADDRESS", "jobset.sigs.k8s.io/coordinator"),
        ]
    if arguments.bucket:
        attributes = {"bucketName": arguments.bucket, "mountOptions": "implicit-dirs"}
        csi = {"driver": "gcsfuse.csi.storage.gke.io", "readOnly": True, "volumeAttributes": attributes}
        spec["volumes"] = [{"name": "bucket", "csi": csi}]
        container["volumeMounts"] = [{"name": "bucket", "mountPath": f"/gcs/{arguments.bucket}", "readOnly": True}]
    return spec


def from_annotation(name: str, annotation: str) -> Manifest:
    """A variable whose value JobSet writes on each pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}}


def main(argv: Sequence[str]) -> None:
    """Prints the manifest, and on standard error which node pools it needs."""
    arguments, command = parse(argv)
    print(json.dumps(manifest(arguments, command), indent=2))
    found = parse_slice(arguments.topology)
    machine = found.tpu.gke_machine.format(found.chips_per_host)
    pools = f"{arguments.num_slices} node pool{'s' if arguments.num_slices > 1 else ''}"
    print(f"needs {pools} of {found.hosts} {machine} with topology {found.shape}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LaunchError as error:
        sys.exit(f"error: {error}")
