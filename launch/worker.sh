#!/usr/bin/env bash
# What launch/tpu_vm.sh asks of every host of a TPU VM; it runs there, from the copy of the project in ~/walt/source.
# Usage: worker.sh install [BUCKET] | start ID COMMAND... | state | log | failure | stop
set -euo pipefail

SOURCE="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
HOME_OF_RUN="$HOME/walt"
RUN="$HOME_OF_RUN/run" LOG="$HOME_OF_RUN/log" VENV="$HOME_OF_RUN/venv"
PREEMPTED=75 # exit status of a command that was told to end and has saved its state

die() {
  echo "error: $(hostname): $*" >&2
  exit 1
}

# state: one line, "walt-worker HOST ID running", "… ended STATUS" (a number, or "stopped"), "… lost" (the host
# restarted) or "… idle".
state() {
  local id=- now=idle
  if [[ -f "$RUN/pid" ]]; then
    id="$(cat "$RUN/id")" now=lost
    [[ -z "$(ps -o stat= -s "$(cat "$RUN/pid")" | awk '!/^Z/')" ]] || now=running
    # Looked at last: it is written before the session ends, and whatever the command has left behind is not the command.
    [[ ! -f "$RUN/status" ]] || now="ended $(cat "$RUN/status")"
  fi
  echo "walt-worker $(hostname) $id $now"
}

mount_bucket() {
  local folder="/gcs/$1" list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
  if ! command -v gcsfuse >/dev/null; then
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" | sudo tee "$list" >/dev/null
    sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse >/dev/null
  fi
  grep -q " $folder " /proc/mounts && return
  sudo mkdir -p "$folder" && sudo chown "$USER" "$folder"
  gcsfuse --implicit-dirs -o ro "$1" "$folder" >/dev/null
}

install() {
  # The images of TPU VMs come with Python 3.10; uv brings a newer one.
  export PATH="$HOME/.local/bin:$PATH"
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv || die "pip could not install uv."
  uv venv --quiet --clear --python 3.12 "$VENV" || die "uv could not make a virtual environment with Python 3.12."
  uv pip install --quiet --python "$VENV/bin/python" --no-deps -r "$SOURCE/launch/requirements.txt" "$SOURCE" ||
    die "the package could not be installed."
  [[ -z "${1:-}" ]] || mount_bucket "$1"
  echo "walt-worker $(hostname) installed"
}

# A session of its own, so that the end of the ssh connection is not the end of the command.
start() {
  local id="$1"
  shift
  [[ "$(state)" != *" running" ]] || die "a command is running already: stop it first."
  [[ -x "$VENV/bin/walt" ]] || die "the package is not installed: run launch/tpu_vm.sh install."
  rm -rf "$RUN"
  mkdir -p "$RUN"
  cd "$HOME_OF_RUN"
  echo "$id" >"$RUN/id"
  PATH="$VENV/bin:$PATH" setsid bash "$SOURCE/launch/worker.sh" _run "$@" >>"$LOG" 2>&1 </dev/null &
  disown # this shell has nothing to say of how it ends
  until [[ -f "$RUN/pid" ]]; do sleep 0.1; done
  echo "walt-worker $(hostname) started"
}

_run() {
  local status=0
  trap : TERM # the command saves and ends; this shell stays to write down its status
  echo "$$" >"$RUN/pid.new" && mv "$RUN/pid.new" "$RUN/pid"
  printf '\n== %s: ' "$(date -u +%FT%TZ)"
  printf '%q ' "$@"
  echo
  "$@" || status="$?"
  echo "$status" >"$RUN/status.new" && mv "$RUN/status.new" "$RUN/status"
  kill -KILL 0 # this shell, and what the command has left behind
}

# stop: asks the command to save and end, and makes it end after five minutes.
stop() {
  local group
  [[ "$(state)" == *" running" ]] || return 0
  group="-$(cat "$RUN/pid")"
  kill -TERM -- "$group" 2>/dev/null || true
  for _ in $(seq 300); do
    [[ "$(state)" == *" running" ]] || break
    sleep 1
  done
  kill -KILL -- "$group" 2>/dev/null || true
  echo stopped >"$RUN/status"
}

# failure: the end of the log, where the command ended badly.
failure() {
  case "$(state)" in
    *" ended 0" | *" ended $PREEMPTED" | *" ended stopped") ;;
    *" ended "*) tail -n 40 "$LOG" | sed "s/^/$(hostname): /" ;;
  esac
}

case "${1:-}" in
  install | start | _run | state | failure | stop) "$@" ;;
  log) tail -n 100 -F "$LOG" ;;
  *) die "worker.sh knows install, start, state, log, failure and stop, got '${1:-}'." ;;
esac
