# shellcheck shell=bash
# Functions shared by the scripts of this folder; sourced, never run.
# They run from the project's folder wherever they are called from, and end with one sentence when something is missing.

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

die() {
  echo "error: $*" >&2
  exit 1
}

# find_python: prints the path of a Python >= 3.11. A name on PATH is not enough: version managers leave stubs that fail.
find_python() {
  local name path
  for name in python3.13 python3.12 python3.11 python3 python; do
    path="$(command -v "$name" || true)"
    if [[ -n "$path" ]] && "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$path"
      return
    fi
  done
  die "Python 3.11 or newer is needed and none was found on PATH (looked for python3.13, python3.12, python3.11, python3)."
}

# require_disk GIGABYTES: ends unless that much is free where the project lies.
require_disk() {
  local free
  free="$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1048576) }')"
  [[ "$free" -ge "$1" ]] || die "$1 GB of free disk are needed in $ROOT and $free GB are free."
}

# make_environment FOLDER EXTRAS: a virtual environment with the package and those extras, installed once per state of
# setup.py. The stamp is written last, so an interrupted installation is repeated.
make_environment() {
  local venv="$1" extras="$2" python stamp log
  stamp="$(cksum <setup.py) [$extras] $ROOT"
  if [[ -x "$venv/bin/python" && "$(cat "$venv/walt-installed" 2>/dev/null || true)" == "$stamp" ]]; then
    return
  fi
  require_disk 4
  python="$(find_python)"
  if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
    echo "making the virtual environment $venv with $python"
    "$python" -m venv --clear "$venv" || die "$python cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)."
  fi
  rm -f "$venv/walt-installed"
  echo "installing walt[$extras] into $venv (a few minutes the first time)"
  log="$venv/pip.log"
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check -e ".[$extras]" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    die "pip could not install the packages; is the package registry (PyPI) reachable? The full output is in $log."
  fi
  echo "$stamp" >"$venv/walt-installed"
}
