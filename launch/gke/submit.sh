#!/usr/bin/env bash
# Starts a walt command on TPU slices of the GKE cluster that kubectl is connected to; jobset.py --help lists the flags.
#
#   launch/gke/submit.sh --topology=v5p:4x4x8 --image=REGISTRY/walt -- walt train --config=… --workdir=gs://…
#
# --dry_run prints the manifest and the command. Preempted and evicted hosts start again by themselves.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

dry_run="" flags=()
while [[ $# -gt 0 && "$1" != -- ]]; do
  if [[ "$1" == --dry_run ]]; then dry_run=1; else flags+=("$1"); fi
  shift
done

python="$(find_python)"
if [[ " ${flags[*]-} " == *" --help "* ]]; then
  exec "$python" launch/gke/jobset.py --help
fi
manifest="$("$python" launch/gke/jobset.py ${flags[@]+"${flags[@]}"} "$@")"
if [[ -n "$dry_run" ]]; then
  echo "kubectl create -f - <<'JOBSET'"
  echo "$manifest"
  echo "JOBSET"
  exit
fi
command -v kubectl >/dev/null || die "kubectl was not found on PATH: install it, and connect it to the cluster (gcloud container clusters get-credentials)."
kubectl get customresourcedefinition jobsets.jobset.x-k8s.io >/dev/null || die "the cluster that kubectl is connected to has no JobSet: see jobset.sigs.k8s.io."
echo "$manifest" | kubectl create -f -

field() { echo "$manifest" | "$python" -c "import json, sys; print(json.load(sys.stdin)['metadata']['$1'])"; }
name="$(field name)" namespace="$(field namespace)"
echo "status: kubectl get jobset $name --namespace=$namespace"
echo "logs:   kubectl logs --follow --namespace=$namespace --selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
echo "delete: kubectl delete jobset $name --namespace=$namespace"
