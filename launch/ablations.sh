#!/usr/bin/env bash
# The paper's table 3 at mini size on game footage: eleven models, two seeds each, same number of steps; writes RUN_FOLDER/ablations.md.
# Takes one to three hours on two cores and may be stopped and started at any time: finished runs are kept, and a folder is of
# one number of steps (1,000 unless given).
# Usage: launch/ablations.sh [RUN_FOLDER [SEEDS [STEPS]]]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ "${1:-}" != -* ]] || die "launch/ablations.sh takes no flags but [RUN_FOLDER [SEEDS [STEPS]]]"
RUN="${1:-runs/ablations}" SEEDS="${2:-2}" STEPS="${3:-}"
[[ "$SEEDS" =~ ^[1-9][0-9]*$ ]] || die "SEEDS must be a number from 1 on, got $SEEDS"
[[ -z "$STEPS" || ("$STEPS" =~ ^[1-9][0-9]*$ && "$STEPS" -gt 50) ]] || die "STEPS must be a number above 50, the steps of warm-up, got $STEPS"
make_environment .venv demo,report,perceptual
walt() { .venv/bin/python -m walt.cli "$@"; }

walt prepare atari --output="$RUN/footage" --clips=1200 --heldout=256
[[ -d "$RUN/raw" ]] || walt convert export --workdir=mini --output="$RUN/raw" --latents=raw
walt prepare latents --autoencoder=mini --input="$RUN/footage" --output="$RUN/latents"
walt prepare latents --autoencoder="$RUN/raw" --input="$RUN/footage" --output="$RUN/latents_raw"
.venv/bin/python launch/ablations.py "$RUN" "$SEEDS" ${STEPS:+"$STEPS"}
