#!/usr/bin/env bash
# Every generation task with the shipped model, a strip of pictures each (docs/tasks/*.webp), and figures of seams, edits and drift
# (docs/tasks/figures.json). Usage: launch/gallery.sh [FOOTAGE [CHECKPOINT]], footage being recorded where there is none.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

FOOTAGE="${1:-runs/gallery/footage}" CHECKPOINT="${2:-mini}"
make_environment .venv demo,report
[[ -f "$FOOTAGE/manifest.json" ]] || .venv/bin/python -m walt.cli prepare atari --output="$FOOTAGE" --clips=32 --heldout=16
.venv/bin/python launch/gallery.py --footage="$FOOTAGE" --checkpoint="$CHECKPOINT"
