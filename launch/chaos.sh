#!/usr/bin/env bash
# A soak: trains the mini text-to-video model over and over while faults are injected at random times, compares every run with a clean
# one, and says what was lost. Writes report.json and report.txt.
# Usage: launch/chaos.sh [--minutes=60] [--schedule=exact|elastic|both] [--seed=0] [--output=runs/chaos]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_environment .venv-test test
exec .venv-test/bin/python tests/chaos/chaos.py --output=runs/chaos "$@"
