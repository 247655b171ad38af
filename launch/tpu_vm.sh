#!/usr/bin/env bash
# Runs walt on Cloud TPU VMs, one host or thousands, through queued resources.
#
#   launch/tpu_vm.sh VERB [--flag=value ...] [-- walt train --config=… --workdir=gs://…]
#
#   watch    ask for the TPUs, install, start the command, and see it through: preempted TPUs are deleted and asked for
#            again, a command that ended with status 75 (preempted, state saved) is started again, and any other failure
#            ends with the end of the log. Interrupt it and call it again at any time: the command goes on by itself.
#   create   ask for the TPUs                       install  copy the project to every host and install it
#   run      start the command on every host        status   of the request and of every host
#   logs     follow the log of one host             stop     let the command save and end
#   delete   give the TPUs back
#
#   --topology=v5p:4x4x8     as for walt plan          --num_slices=1        slices joined by the data-centre network
#   --zone=us-east5-a        (CLOUDSDK_COMPUTE_ZONE)   --project=my-project  (CLOUDSDK_CORE_PROJECT, or gcloud's own)
#   --name=walt              of the request            --provisioning=on_demand|spot|reserved
#   --runtime_version=…      the generation's own      --bucket=NAME         mounted, to read from, at /gcs/NAME
#   --node=0 --worker=0      slice and host of logs    --poll_seconds=60     how often watch looks
#   --patience=10            looks until watch gives up: hosts that do not answer, hosts that do not end with the others,
#                            anything that keeps failing
#   --delete_when_done       after watch               --dry_run             print the commands, run none
#
# Every flag with a value has a variable: WALT_ZONE for --zone. After -- stands the command as it would be typed here.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

FLAGS=" name topology num_slices zone project provisioning runtime_version bucket node worker poll_seconds patience "
VERBS=" watch create install run status logs stop delete "
PREEMPTED=75

name="${WALT_NAME:-walt}" topology="${WALT_TOPOLOGY:-}" num_slices="${WALT_NUM_SLICES:-1}"
zone="${WALT_ZONE:-${CLOUDSDK_COMPUTE_ZONE:-}}" project="${WALT_PROJECT:-${CLOUDSDK_CORE_PROJECT:-}}"
provisioning="${WALT_PROVISIONING:-on_demand}" runtime_version="${WALT_RUNTIME_VERSION:-}" bucket="${WALT_BUCKET:-}"
node="${WALT_NODE:-0}" worker="${WALT_WORKER:-0}" poll_seconds="${WALT_POLL_SECONDS:-60}"
patience="${WALT_PATIENCE:-10}" dry_run="" delete_when_done="" command=()

parse_flags() {
  local flag
  while [[ $# -gt 0 ]]; do
    flag="${1%%=*}" flag="${flag#--}"
    case "$1" in
      --) shift && command=("$@") && return ;;
      --dry_run) dry_run=1 ;;
      --delete_when_done) delete_when_done=1 ;;
      --*)
        [[ "$FLAGS" == *" $flag "* ]] || die "there is no flag --$flag; there are${FLAGS// / --}delete_when_done and --dry_run."
        [[ "$1" == --*=?* ]] || die "--$flag needs a value: --$flag=VALUE."
        printf -v "$flag" %s "${1#*=}"
        ;;
      *) die "unexpected argument $1: flags are written --name=value, and the command stands after --." ;;
    esac
    shift
  done
}

# check_flags: sets vm_type, vm_image, hosts (of all slices) and resource (gcloud's flags that say which request).
check_flags() {
  local python found lasting=bucket
  python="$(find_python)"
  [[ "$name" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "--name=$name must be lowercase letters, digits and dashes, at most 40."
  [[ -n "$zone" ]] || die "--zone is missing: say where the TPUs are, such as --zone=us-east5-a."
  [[ "$provisioning" =~ ^(on_demand|spot|reserved)$ ]] || die "--provisioning=$provisioning is none of on_demand, spot, reserved."
  for flag in num_slices poll_seconds patience; do
    [[ "${!flag}" =~ ^[1-9][0-9]*$ ]] || die "--$flag=${!flag} must be a number from 1 on."
  done
  for flag in node worker; do
    [[ "${!flag}" =~ ^[0-9]+$ ]] || die "--$flag=${!flag} must be a number from 0 on."
  done
  resource=("$name" "--zone=$zone" ${project:+"--project=$project"})
  if [[ "$verb" =~ ^(watch|create|run)$ ]]; then
    [[ -n "$topology" ]] || die "--topology is missing: say what kind of slice, such as --topology=v5e:4x4."
    found="$("$python" launch/pods.py slice "$topology")" || exit 1
    read -r vm_type vm_image hosts <<<"$found"
    vm_image="${runtime_version:-$vm_image}" hosts="$((hosts * num_slices))"
  fi
  if [[ "$verb" =~ ^(watch|run)$ ]]; then
    [[ "$hosts" -gt 1 || "$provisioning" == spot ]] || lasting="local"
    "$python" launch/pods.py check "$lasting" -- ${command[@]+"${command[@]}"} || exit 1
    id="$(quoted "${command[@]}" | cksum | awk '{ print $1 }')"
  elif [[ ${#command[@]} -gt 0 ]]; then
    die "$verb takes no command: only watch and run do."
  fi
  [[ -n "$dry_run" ]] || command -v gcloud >/dev/null || die "gcloud was not found on PATH: install the Google Cloud CLI."
}

say() { echo "$(date -u +%FT%TZ) $*"; }

# quoted WORD...: as it could be typed, in any shell.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line="$line $word"
  done
  echo "${line# }"
}

# call COMMAND...: runs it, or prints it.
call() {
  if [[ -n "$dry_run" ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

queued() { call gcloud compute tpus queued-resources "$@"; }

on_hosts() { queued ssh "${resource[@]}" --quiet --node=all --worker=all --command="$1"; }

worker() { on_hosts "bash walt/source/launch/worker.sh $1"; }

create() {
  local nodes=(--node-id="$name") tier=()
  [[ "$num_slices" -eq 1 ]] || nodes=(--node-count="$num_slices" --node-prefix="$name")
  [[ "$provisioning" == on_demand ]] || tier=("--$provisioning")
  queued create "${resource[@]}" "${nodes[@]}" --accelerator-type="$vm_type" --runtime-version="$vm_image" \
    ${tier[@]+"${tier[@]}"} --scopes=https://www.googleapis.com/auth/cloud-platform
}

# What is installed is the working copy, so that a run is the code in front of you.
install() {
  local archive=".cache/walt-source-$name.tar.gz"
  call mkdir -p .cache &&
    call tar -czf "$archive" --exclude=__pycache__ setup.py pyproject.toml README.md LICENSE walt configs launch &&
    queued scp "$archive" "$name:walt-source.tar.gz" "${resource[@]:1}" --quiet --node=all --worker=all &&
    on_hosts "rm -rf walt/source && mkdir -p walt/source && tar -xzf walt-source.tar.gz -C walt/source" &&
    worker "install${bucket:+ $bucket}"
}

run() { worker "start $id $(quoted "${command[@]}")"; }

delete() { queued delete "${resource[@]}" --force --quiet; }

# request_state: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED …; NONE without a request; UNKNOWN if gcloud cannot say.
request_state() {
  local answer
  if answer="$(gcloud compute tpus queued-resources describe "${resource[@]}" --format="value(state.state)" 2>&1)"; then
    grep -xE '[A-Z_]+' <<<"$answer" | tail -n 1 # gcloud may have warned of something as well
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# host_states: a line for every host that answers; see worker.sh. A host without the project answers "idle".
host_states() {
  on_hosts "bash walt/source/launch/worker.sh state 2>/dev/null || echo \"walt-worker \$(hostname) - idle\"" 2>/dev/null |
    grep '^walt-worker ' || true
}

# end_with_log SENTENCE: what every host with a failed command has to say, then the sentence.
end_with_log() {
  worker failure 2>/dev/null | awk 'NR <= 200' >&2 || true
  die "$*"
}

start_again() {
  failures=0 stragglers=0 stopped=""
  if [[ -z "$installed" ]]; then
    say "installing on $hosts hosts"
    install || { try_later "installing" && return; }
  fi
  installed=1
  say "starting: ${command[*]}"
  run || { try_later "starting" && return; }
  started=1 tries=0
}

# try_later WHAT: for what may fail because hosts are being taken away, or the network is down.
try_later() {
  tries="$((tries + 1))"
  [[ "$tries" -lt "$patience" ]] || die "$1 on $name failed $patience times; the messages are above."
  say "$1 failed; trying again in $poll_seconds seconds"
}

# attend: looks at the hosts once and does what is to be done; true when the command has ended well everywhere.
attend() {
  local states answers running well saved other
  count() { grep -cE "$1" <<<"$states" || true; }
  states="$(host_states)"
  answers="$(count .)" running="$(count ' running$')"
  other="$(grep -v " $id " <<<"$states" | grep -c ' running$' || true)"
  well="$(count " $id ended 0$")" saved="$(count " $id (ended $PREEMPTED|lost)$")"
  [[ "$other" -eq 0 ]] || die "another command is running on $name: stop it first (launch/tpu_vm.sh stop --name=$name)."

  [[ "$answers" -le "$hosts" ]] || die "$name has $answers hosts and not $hosts: it was made with another --topology or --num_slices."
  if [[ "$answers" -lt "$hosts" ]]; then
    silent="$((silent + 1))"
    say "$answers of $hosts hosts answer"
    [[ "$silent" -ge "$patience" ]] || return 1
    [[ "$provisioning" == spot ]] || die "$((hosts - answers)) of $hosts hosts of $name do not answer; nothing was deleted."
    give_up_tpus "hosts do not answer"
    return 1
  fi
  silent=0
  if [[ "$running" -eq "$hosts" ]]; then
    [[ -n "$started" ]] || say "the command is running already"
    started=1 stragglers=0 restarts=0
  elif [[ "$running" -gt 0 ]]; then
    stragglers="$((stragglers + 1))"
    say "the command has ended on $((hosts - running)) of $hosts hosts"
    [[ "$stragglers" -lt "$patience" ]] || { stopped=1 && worker stop; }
  elif [[ "$well" -eq "$hosts" ]]; then
    return 0
  elif [[ -z "$started" ]]; then
    start_again
  elif [[ -z "$stopped" && "$states" == *" ended stopped"* ]]; then
    die "the command was stopped; call watch again to go on."
  elif [[ "$saved" -gt 0 ]]; then
    restarts="$((restarts + 1))"
    [[ "$restarts" -lt "$patience" ]] || die "the command was preempted $restarts times and never seen running between."
    say "the command was preempted and has saved its state"
    start_again
  else # Looked at twice: hosts that fail because others are being taken away are no failure of the command.
    failures="$((failures + 1))"
    [[ "$failures" -lt 2 ]] || end_with_log "the command failed; the TPUs of $name are still there (launch/tpu_vm.sh delete)."
  fi
  return 1
}

# give_up_tpus WHY: the request is deleted; watch then finds none, and makes the same one again.
give_up_tpus() {
  say "$1: deleting $name, to ask for the same TPUs again"
  installed="" started="" silent=0 failures=0 stragglers=0
  delete || try_later "deleting"
}

watch() {
  local state before="" installed="" started="" stopped="" silent=0 failures=0 stragglers=0 restarts=0 tries=0
  while true; do
    state="$(request_state)"
    [[ "$state" == "$before" ]] || say "$name is $state"
    case "$state" in
      ACTIVE) ! attend || break ;;
      NONE) create || { [[ -n "$before" ]] && try_later "asking for TPUs"; } || die "the TPUs cannot be had; gcloud says why above." ;;
      SUSPENDED) give_up_tpus preempted ;;
      FAILED) die "the request failed: gcloud compute tpus queued-resources describe ${resource[*]} says why." ;;
      UNKNOWN) [[ -n "$before" ]] || die "gcloud cannot say how $name is." ;;
    esac
    before="$state"
    sleep "$poll_seconds"
  done
  say "the command has ended well"
  if [[ -n "$delete_when_done" ]]; then
    delete
  else
    say "the TPUs cost money until launch/tpu_vm.sh delete --name=${resource[*]}"
  fi
}

# What watch would do, in order.
plan_of_watch() {
  echo "# unless there is a request of that name"
  create
  echo "# when it is ACTIVE, every $poll_seconds seconds: gcloud compute tpus queued-resources describe ${resource[*]}"
  install
  run
  echo "# every $poll_seconds seconds; status $PREEMPTED: start the command again"
  worker state
  echo "# when the request is SUSPENDED, and then from the start"
  delete
  [[ -z "$delete_when_done" ]] || { echo "# when the command has ended well" && delete; }
}

if [[ "${1:-}" == --help || $# -eq 0 ]]; then
  sed -n '2,/^source/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
verb="$1"
[[ "$VERBS" == *" $verb "* ]] || die "there is no verb $verb; there are$VERBS."
parse_flags "${@:2}"
check_flags

if [[ -z "$dry_run" && "$verb" =~ ^(install|run|logs|stop)$ ]]; then
  state="$(request_state)"
  [[ "$state" == ACTIVE ]] || die "$name is $state and not ACTIVE: wait for it (launch/tpu_vm.sh status), or use watch."
fi
case "$verb" in
  watch) if [[ -n "$dry_run" ]]; then plan_of_watch; else watch; fi ;;
  create | install | run | delete) "$verb" ;;
  stop) worker stop ;;
  status)
    queued describe "${resource[@]}" --format="value(state.state)"
    worker state
    ;;
  logs) queued ssh "${resource[@]}" --quiet --node="$node" --worker="$worker" --command="bash walt/source/launch/worker.sh log" ;;
esac
