#!/usr/bin/env bash
# The paper's table 3 at mini size on game footage: eleven models, two seeds each, same number of steps; writes RUN_FOLDER/ablations.md.
# Takes one to three hours on two cores and may be stopped and started at any time: finished runs are kept.
# Usage: launch/ablations.sh [RUN_FOLDER [SEEDS [STEPS]]]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUN="${1:-runs/ablations}" SEEDS="${2:-2}" STEPS="${3:-}"
make_environment .venv demo,report,perceptual
walt() { .venv/bin/python -m walt.cli "$@"; }

walt prepare atari --output="$RUN/footage" --clips=1200 --heldout=256
[[ -d "$RUN/raw" ]] || walt convert export --workdir=mini --output="$RUN/raw" --latents=raw
walt prepare latents --autoencoder=mini --input="$RUN/footage" --output="$RUN/latents"
walt prepare latents --autoencoder="$RUN/raw" --input="$RUN/footage" --output="$RUN/latents_raw"
.venv/bin/python launch/ablations.py "$RUN" "$SEEDS" ${STEPS:+"$STEPS"}
