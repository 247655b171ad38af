"""The card of a bundle: what it was trained on, for how long, from which commit, and what it reaches."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from walt.config import ConfigError
from walt.data.records import DatasetError, read_manifest
from walt.evaluation import evaluate_clips
from walt.evaluation.source import PreparedClips, read_clips
from walt.experiment.provenance import environment_of
from walt.experiment.sampling import reconstruct, sample_labels
from walt.generation.bundle import BundleError
from walt.generation.pipeline import load
from walt.generation.sources import open_bundle, shipped_bundles
from walt.training.checkpoint import stored_config
from walt.training.folder import CheckpointError, latest_step
from walt.training.metrics import read_metrics

SEEDS = 8
HELDOUT = 128


def describe(workdir: Path, footage: Path) -> dict[str, Any]:
    """Measures the model of a stage-2 workdir on the held-out clips of `footage`, and adds where it comes from.

    Raises what loading and measuring raise.
    """
    transformer = training_of(workdir)  # both first: a bundle, which cannot tell, is refused before it is measured
    training = {"autoencoder": training_of(stored_config(workdir).autoencoder_path), "transformer": transformer}
    manifest, pipeline = read_manifest(footage), load(workdir)
    if pipeline.low_size is not None:
        raise ConfigError(
            f"{workdir} is a super-resolution model, whose figures depend on the model before it: measure the samples of "
            "`walt sample --cascade` with `walt evaluate`"
        )
    sampler = pipeline.sampler
    heldout = read_clips(footage, "heldout", HELDOUT)
    result = evaluate_clips(
        heldout,
        reconstructions=reconstruct(pipeline, heldout),
        generated=sample_labels(pipeline, heldout, SEEDS),
        training=PreparedClips(footage),
    )
    return {
        "fps": manifest.fps,
        "data": {"recipe": manifest.name, "labels": list(heldout.label_names)},
        "training": training,
        "commit": transformer.get("commit"),
        "versions": transformer.get("versions"),
        "figures": {name: value for name, value in result.headline().items() if value is not None},
        "protocol": f"{len(heldout)} held-out clips, {len(heldout.label_names)} prompts x {SEEDS} samples, {sampler.steps} steps, "
        f"guidance {sampler.guidance}",
    }


def training_of(path: Path | str) -> dict[str, Any]:
    """How the model at `path` was trained: of a work directory its data, length, commit and packages, of a bundle what its
    card says. What nobody can tell any more, such as of data that are gone, is left out."""
    if str(path) in shipped_bundles() or latest_step(path) is None:
        return _of_bundle(path)
    config, environment = stored_config(path), environment_of(path)
    found: dict[str, Any] = {}
    with contextlib.suppress(DatasetError):
        manifest = read_manifest(config.data.path)
        found |= {"recipe": manifest.name, "clips": manifest.splits[config.data.split].count, "seed": manifest.seed}
    timed = [record for record in read_metrics(path) if "seconds" in record]
    if timed:
        found |= {"steps": timed[-1]["step"], "seconds": round(timed[-1]["seconds"])}
    if environment:
        found |= {"commit": environment["commit"], "versions": environment["packages"]}
    if config.get("init_from") is not None:
        found["started_from"] = _of_bundle(config.init_from.path)
    return found


def _of_bundle(path: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = {"bundle": str(path)}
    with contextlib.suppress(BundleError, CheckpointError):
        card = open_bundle(path).card
        found |= {key: card[key] for key in ("commit", "training") if key in card}
    return found
