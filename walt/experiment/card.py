"""The card of a bundle: what it was trained on, for how long, from which commit, and what it reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from walt.data.records import read_manifest
from walt.evaluation import describe_environment, evaluate_clips
from walt.evaluation.source import PreparedClips, read_clips
from walt.experiment.sampling import reconstruct, sample_labels
from walt.generation.pipeline import load
from walt.generation.sources import open_bundle
from walt.training.checkpoint import latest_step, stored_config
from walt.training.metrics import read_metrics

SEEDS = 8
HELDOUT = 128


def describe(workdir: Path, footage: Path) -> dict[str, Any]:
    """Measures the model of a stage-2 workdir on the held-out clips of `footage`, which its autoencoder was trained on.

    Raises what loading and measuring raise.
    """
    manifest, pipeline = read_manifest(footage), load(workdir)
    config = stored_config(workdir)
    heldout = read_clips(footage, "heldout", HELDOUT)
    result = evaluate_clips(
        heldout,
        reconstructions=reconstruct(pipeline, heldout),
        generated=sample_labels(pipeline, heldout, SEEDS),
        training=PreparedClips(footage),
    )
    environment = describe_environment()
    return {
        "fps": manifest.fps,
        "data": {
            "recipe": manifest.name,
            "labels": list(heldout.label_names),
            "clips_autoencoder": manifest.splits["train"].count,
            "clips_transformer": read_manifest(config.data.path).splits["train"].count,
            "seed": manifest.seed,
        },
        "training": {"autoencoder": _training(config.autoencoder_path), "transformer": _training(workdir)},
        "commit": environment["commit"],
        "versions": environment["packages"],
        "figures": {name: value for name, value in result.headline().items() if value is not None},
        "protocol": f"{HELDOUT} held-out clips, {len(heldout.label_names)} prompts x {SEEDS} samples, {config.sampler.steps} steps, "
        f"guidance {config.sampler.guidance}",
    }


def _training(workdir: Path | str) -> dict[str, Any]:
    """Steps and seconds of a run, from its log, and what it started from; empty for a bundle, which has no log."""
    if latest_step(workdir) is None:
        return {}
    timed = [record for record in read_metrics(workdir) if "seconds" in record]
    found: dict[str, Any] = {"steps": timed[-1]["step"], "seconds": round(timed[-1]["seconds"])} if timed else {}
    rules = stored_config(workdir).get("init_from")
    if rules is not None:
        card = open_bundle(rules.path).card
        found["started_from"] = {"bundle": rules.path} | {key: card[key] for key in ("commit", "training") if key in card}
    return found
