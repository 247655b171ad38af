#!/usr/bin/env bash
# Trains the bundle that ships with the package (walt/_bundles/mini): footage, autoencoder, latents, transformer, export.
# Takes about two hours on two cores and may be stopped and started at any time: finished steps are kept, training continues
# from its last checkpoint. Usage: launch/train_mini.sh [RUN_FOLDER [CLIPS [START]]], where START is a bundle to train
# further ("mini": the one that ships now) and "" means from nothing.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUN="${1:-runs/mini}" CLIPS="${2:-6000}" START="${3:-}"
make_environment .venv demo,report
walt() { .venv/bin/python -m walt.cli "$@"; }

# Trained weights want a smaller step, and fewer of them.
autoencoder=() transformer=()
if [[ -n "$START" ]]; then
  autoencoder=(--config.init_from.path="$START" --config.training.optimizer.learning_rate=5e-4 --config.training.num_steps=600)
  transformer=(--config.init_from.path="$START" --config.training.optimizer.learning_rate=5e-4 --config.training.num_steps=1500
    --config.init_from.widen=True --config.diffusion.known_rate=0.5 --config.diffusion.unequal_rate=0.2)
fi

walt prepare atari --output="$RUN/footage" --clips="$CLIPS" --heldout=256
walt train --config=autoencoder/atari --workdir="$RUN/autoencoder" --config.data.path="$RUN/footage" \
  "${autoencoder[@]+"${autoencoder[@]}"}"
walt prepare latents --autoencoder="$RUN/autoencoder" --input="$RUN/footage" --output="$RUN/latents" --limit=2500
walt train --config=t2v/atari --workdir="$RUN/t2v" --config.data.path="$RUN/latents" \
  --config.autoencoder_path="$RUN/autoencoder" "${transformer[@]+"${transformer[@]}"}"

# What a user of the bundle should know: measured on the held-out clips, and by eye.
walt convert card --workdir="$RUN/t2v" --real="$RUN/footage" --output="$RUN/card.json"
walt convert export --workdir="$RUN/t2v" --output="$RUN/model" --card="$RUN/card.json"
walt convert export --workdir="$RUN/model" --output="$RUN/bundle" --dtype=float16 --card=launch/mini_notes.json
echo "the bundle is in $RUN/bundle; copy it to walt/_bundles/mini to ship it"
