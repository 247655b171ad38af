#!/usr/bin/env bash
# Trains the bundle that ships with the package (walt/_bundles/mini): autoencoder, latents, transformer, export.
# Takes hours on two cores and may be stopped and started at any time: finished steps are kept, training continues from
# its last checkpoint. Usage: launch/train_mini.sh [RUN_FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUN="${1:-runs/mini}"
make_environment .venv demo,report
walt() { .venv/bin/python -m walt.cli "$@"; }

walt prepare atari --output="$RUN/footage"
walt train --config=autoencoder/atari --workdir="$RUN/autoencoder" --config.data.path="$RUN/footage"
walt prepare latents --autoencoder="$RUN/autoencoder" --input="$RUN/footage" --output="$RUN/latents"
walt train --config=t2v/atari --workdir="$RUN/t2v" --config.data.path="$RUN/latents"
walt convert export --workdir="$RUN/t2v" --output="$RUN/bundle"
echo "the bundle is in $RUN/bundle; copy it to walt/_bundles/mini to ship it"
