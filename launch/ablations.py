"""Runs the study of `walt.experiment.ablation` on what launch/ablations.sh prepared: ablations.py RUN_FOLDER SEEDS [STEPS]."""

import sys
from pathlib import Path

import jax

from walt.experiment.ablation import study, table

SAMPLES = 24  # of each game


def main(folder: str, seeds: str, steps: str | None = None) -> None:
    run = Path(folder).resolve()
    jax.config.update("jax_compilation_cache_dir", str(run / "compiled"))
    latents = {"normalised": (run / "latents", Path("mini")), "raw": (run / "latents_raw", run / "raw")}
    results = study(run, run / "footage", latents, int(seeds), None if steps is None else int(steps), SAMPLES)
    (run / "ablations.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
