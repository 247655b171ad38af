#!/usr/bin/env bash
# The whole path on this machine: environment, footage, training, videos, report. Arguments go to `walt quickstart`.
# Needs Python 3.11, 5 GB of disk and two CPU cores; relative paths in the arguments start at the project's folder.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_environment .venv demo,report
require_disk 1
exec .venv/bin/python -m walt.quickstart --output=runs/quickstart "$@"
