#!/usr/bin/env bash
# Trains the mini cascade, 64x64 to 128x128: footage, an autoencoder and a super-resolution model behind the shipped model, then
# samples and a report that shows them beside real clips. Takes one to two hours on two cores and may be stopped and started at any
# time. Usage: launch/train_cascade.sh [RUN_FOLDER [CLIPS]]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

RUN="${1:-runs/cascade}" CLIPS="${2:-2000}"
make_environment .venv demo,report
walt() { .venv/bin/python -m walt.cli "$@"; }

walt prepare atari --output="$RUN/footage" --height=128 --width=128 --clips="$CLIPS"
walt train --config=autoencoder/atari_128 --workdir="$RUN/autoencoder" --config.data.path="$RUN/footage"
walt prepare latents --autoencoder="$RUN/autoencoder" --input="$RUN/footage" --output="$RUN/latents" --low_resolution=2 --limit=600
walt train --config=t2v/super_atari --workdir="$RUN/super" --config.data.path="$RUN/latents" \
  --config.autoencoder_path="$RUN/autoencoder"

prompts=()
for game in Boxing Enduro "Fishing Derby" Freeway "Ms. Pac-Man" "River Raid" "Road Runner" Seaquest; do
  for _ in 1 2 3 4; do prompts+=(--prompt="a game of $game"); done
done
walt sample --cascade="$RUN/super" "${prompts[@]}" --output="$RUN/samples/video.mp4" --captions --scale=1
walt evaluate --real="$RUN/footage" --generated="$RUN/samples" --report="$RUN/report.html" --json="$RUN/report.json"
