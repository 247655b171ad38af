"""The paper's table 3 at mini size: one change of the model at a time, every run as long as the others, each with several seeds.

A run is trained, measured, and its figures written down before the next one starts, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

import walt.config
from walt.autoencoder.efficientnet import EfficientNetLite0, convert_weights, read_weights, weights_file
from walt.evaluation import Clips, evaluate_clips, frechet_distance
from walt.evaluation.source import PreparedClips, read_clips
from walt.experiment.config import DiffusionExperiment, parse
from walt.experiment.progress import write_json
from walt.experiment.sampling import sample_labels
from walt.experiment.stage2 import diffusion_task, latent_loader, train_diffusion
from walt.generation.pipeline import load
from walt.training.checkpoint import stored_config
from walt.training.heldout import HeldOut
from walt.training.module import Functional

BASELINE = "baseline"
CONFIG = "classes/ablation"
STAGES = 5  # of EfficientNet-Lite0: 112 channels at a sixteenth of the size
HELDOUT_BATCHES = 16


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
      title: what it is called in the table.
      overrides: of the config `classes/ablation`, as `walt train --config.KEY=VALUE` takes them.
      published: FVD on UCF-101 with the change and without it [W table 3; stills: zero-shot text-to-video, section 5.3]; None where there is none.
      comparable: whether its held-out loss is a loss of the same thing as the baseline's.
      latents: "normalised" or "raw".
    """

    title: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    published: tuple[float, float] | None = None
    comparable: bool = True
    latents: str = "normalised"


VARIANTS: Mapping[str, Variant] = {
    BASELINE: Variant("baseline"),
    "no_self_conditioning": Variant(
        "self-conditioning 0 in place of 0.9",
        {
            "transformer.self_conditioning": "False",
            "transformer.in_channels": "8",
            "diffusion.self_conditioning_rate": "0.0",
        },
        (109.9, 61.4),
    ),
    "no_zero_snr": Variant(
        "without zero terminal SNR", {"diffusion.zero_terminal_snr": "False"}, (91.0, 60.7), comparable=False
    ),
    "raw_latents": Variant("without latent normalisation", {}, (67.9, 60.7), comparable=False, latents="raw"),
    "no_qk_norm": Variant("without QK-norm", {"transformer.qk_norm": "False"}, (59.0, 60.7)),
    "lora_16": Variant("LoRA rank 16 in place of 2", {"transformer.lora_rank": "16"}, (55.5, 60.7)),
    "lora_64": Variant("LoRA rank 64 in place of 2", {"transformer.lora_rank": "64"}, (54.4, 60.7)),
    "window_quarter": Variant(
        "windows 5x1x1: a quarter of the side, not a half", {"transformer.spacetime_window": "5,1,1"}, (56.9, 59.6)
    ),
    "window_whole": Variant("windows 5x4x4: the whole side", {"transformer.spacetime_window": "5,4,4"}, (55.3, 59.6)),
    "full_attention": Variant(
        "full attention in every layer",
        {"transformer.spatial_window": "5,4,4", "transformer.spacetime_window": "None"},
        (59.9, 59.6),
    ),
    "stills": Variant("a quarter of the rows stills", {"data.image_fraction": "0.25"}, (344.5, 598.8)),
}


def study(
    folder: Path, footage: Path, latents: Mapping[str, tuple[Path, Path]], seeds: int, steps: int | None, samples: int
) -> dict[str, dict[str, float]]:
    """Trains and measures every variant with every seed; returns the figures of each run, "VARIANT-SEED".

    Args:
      folder: where runs and `results.json` lie; what stands there already is not done again.
      footage: prepared clips.
      latents: "normalised" and "raw": (their latents, the autoencoder that made them).
      steps: of each run; by default the config's.
      samples: of each label.
    """
    file = folder / "results.json"
    results: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    measure = Measure(footage, samples)
    if "floor" not in results:
        results["floor"] = measure.floor()
        write_json(file, results)
    for seed in range(seeds):  # all variants once before any twice: a study cut short can be read
        for name, variant in VARIANTS.items():
            run = f"{name}-{seed}"
            if run in results:
                continue
            data, autoencoder = latents[variant.latents]
            overrides = {**variant.overrides, "training.seed": str(seed), "data.seed": str(seed)}
            overrides |= {"data.path": str(data), "autoencoder_path": str(autoencoder)}
            if steps is not None:
                overrides["training.num_steps"] = str(steps)
            print(f"== {run}: {variant.title}")
            start = time.monotonic()
            experiment = parse(walt.config.apply_overrides(walt.config.load(CONFIG), overrides))
            assert isinstance(experiment, DiffusionExperiment)
            results[run] = run_and_measure(experiment, folder / run, measure)
            results[run]["seconds"] = round(time.monotonic() - start, 1)
            print("   " + ", ".join(f"{key} {value:.4g}" for key, value in results[run].items()))
            write_json(file, results)
    return results


def run_and_measure(experiment: DiffusionExperiment, workdir: Path, measure: Measure) -> dict[str, float]:
    """Trains one run (or goes on with it), then its held-out losses on videos alone and the figures of its samples."""
    state = train_diffusion(experiment, workdir)
    resolved = parse(stored_config(workdir))
    assert isinstance(resolved, DiffusionExperiment)
    videos = dataclasses.replace(resolved, data=dataclasses.replace(resolved.data, image_fraction=0.0, seed=0))
    heldout = HeldOut(
        diffusion_task(resolved), latent_loader(videos, None, "heldout"), every=1, num_batches=HELDOUT_BATCHES
    )
    losses = heldout(state, int(state.step))
    return {**{name: float(value) for name, value in losses.items()}, **measure.samples_of(workdir)}


class Measure:
    """Figures of samples beside real clips."""

    def __init__(self, footage: Path, samples: int):
        self.samples = samples
        self.heldout = read_clips(footage, "heldout")
        training = PreparedClips(footage)
        network = Functional(lambda _: EfficientNetLite0(stages=STAGES))
        weights = convert_weights(read_weights(weights_file()), network.abstract_extra)
        self._features = lambda frames: network.bind({}, weights).features(frames)[-1].mean(axis=(1, 2))
        self._real = np.concatenate([self.clip_features(clips.videos) for clips in training])

    def clip_features(self, videos: UInt8[np.ndarray, "n t h w 3"], batch: int = 8) -> Float[np.ndarray, "n d"]:
        """Of each clip, features of EfficientNet-Lite0 averaged over positions: their mean over the frames, and their mean absolute change
        from frame to frame."""
        import jax

        compiled = jax.jit(self._features)
        count = len(videos)
        found = []
        for start in range(0, count, batch):
            chosen = videos[np.minimum(np.arange(start, start + batch), count - 1)]  # one shape to compile
            frames = jnp.asarray(chosen.reshape(-1, *videos.shape[2:]), jnp.float32) / 255
            found.append(np.asarray(compiled(frames)).reshape(batch, videos.shape[1], -1))
        features = np.concatenate(found)[:count]
        return np.concatenate([features.mean(1), np.abs(np.diff(features, axis=1)).mean(1)], axis=1)

    def samples_of(self, workdir: Path) -> dict[str, float]:
        """The figures of samples of every label."""
        return self._figures(sample_labels(load(workdir), self.heldout, self.samples))

    def floor(self) -> dict[str, float]:
        """The figures of as many real clips, which no run was trained on."""
        rows = [row for label in self.heldout.label_names for row in self.heldout.rows_of(label)[: self.samples]]
        labels = tuple(self.heldout.labels[row] for row in rows)
        return self._figures(Clips(self.heldout.videos[np.asarray(rows)], labels))

    def _figures(self, clips: Clips) -> dict[str, float]:
        figures = evaluate_clips(self.heldout, generated=clips).headline()
        kept = ("prompt_accuracy", "motion_ratio", "diversity_ratio")
        return {
            "samples": len(clips),
            "frechet": frechet_distance(self._real, self.clip_features(clips.videos)),
            **{name: float(figures[name]) for name in kept if figures.get(name) is not None},  # type: ignore[arg-type]
        }


BUCKETS = ("loss_t0-0.25", "loss_t0.25-0.5", "loss_t0.5-0.75", "loss_t0.75-1")


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: a row per variant, means over seeds with half their range, and whether the change of the Fréchet distance has the sign of the paper's."""
    lines = [
        "| | Fréchet | change | published | sign | loss | at t < 0.25 | 0.25-0.5 | 0.5-0.75 | > 0.75 | prompt accuracy | motion | diversity |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    baseline = _runs(results, BASELINE)
    noise = seed_noise(results)
    for name, variant in VARIANTS.items():
        runs = _runs(results, name)
        if not runs:
            continue
        change = _mean(runs, "frechet") - _mean(baseline, "frechet")
        cells = [variant.title, _cell(runs, "frechet", 1)]
        if name == BASELINE:
            cells += ["", "", ""]
        else:
            published = variant.published
            cells += [
                f"{change:+.1f}",
                "" if published is None else f"{published[0] - published[1]:+.1f}",
                "" if published is None else agreement(change, published[0] - published[1], noise),
            ]
        losses = [_cell(runs, key, 4) for key in ("loss", *BUCKETS)]
        cells += losses if variant.comparable else [f"({cell})" for cell in losses]
        cells += [_cell(runs, key, 2) for key in ("prompt_accuracy", "motion_ratio", "diversity_ratio")]
        lines.append("| " + " | ".join(cells) + " |")
    if "floor" in results:
        floor = [results["floor"]]
        cells = ["real held-out clips", _cell(floor, "frechet", 1), *[""] * 8]
        cells += [_cell(floor, key, 2) for key in ("prompt_accuracy", "motion_ratio", "diversity_ratio")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def seed_noise(results: Mapping[str, Mapping[str, float]]) -> float:
    """Standard error of a difference of two means over seeds: from the spread between seeds, pooled over variants; 0 with one seed."""
    groups = [[run["frechet"] for run in _runs(results, name)] for name in VARIANTS]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return 0.0
    variance = sum(np.var(group, ddof=1) * (len(group) - 1) for group in groups) / sum(len(g) - 1 for g in groups)
    return float(np.sqrt(variance * 2 / min(len(group) for group in groups)))


def agreement(change: float, published: float, noise: float) -> str:
    """ "same" or "opposite" as the paper's, "undecided" within two standard errors of the difference."""
    if abs(change) < 2 * noise:
        return "undecided"
    return "same" if change * published > 0 else "opposite"


def _runs(results: Mapping[str, Mapping[str, float]], name: str) -> list[Mapping[str, float]]:
    return [run for key, run in results.items() if key.rpartition("-")[0] == name]


def _mean(runs: list[Mapping[str, float]], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _cell(runs: list[Mapping[str, float]], key: str, digits: int) -> str:
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
