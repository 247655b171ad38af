"""The paper's table 3 at mini size: one change of the model at a time, every run as long as the others, each with several seeds.

A run is trained, measured, and its figures written down before the next one starts, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import walt.config
from walt.config import ConfigError
from walt.evaluation import Clips, evaluate_clips, frechet_distance
from walt.evaluation.features import Extractor
from walt.evaluation.protocols import PROTOCOLS
from walt.evaluation.source import PreparedClips, read_clips
from walt.experiment.config import DiffusionExperiment, parse
from walt.experiment.progress import write_json
from walt.experiment.sampling import sample_labels
from walt.experiment.stage2 import diffusion_task, latent_loader, train_diffusion
from walt.generation.pipeline import load
from walt.training.checkpoint import stored_config
from walt.training.heldout import HeldOut

BASELINE = "baseline"
CONFIG = "classes/ablation"
HELDOUT_BATCHES = 16
SAMPLE_FIGURES = ("prompt_accuracy", "motion_ratio", "diversity_ratio")


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
      title: what it is called in the table.
      overrides: of the config `classes/ablation`, as `walt train --config.KEY=VALUE` takes them.
      published: FVD on UCF-101 with the change and without it [W table 3; with stills: zero-shot, of a text-to-video model, table 4].
      comparable: whether its held-out loss is a loss of the same thing as the baseline's.
      latents: "normalised" or "raw".
    """

    title: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    published: tuple[float, float] = (math.nan, math.nan)
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
    "stills": Variant("a quarter of the rows stills*", {"data.image_fraction": "0.25"}, (344.5, 598.8)),
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
    budget = {"steps": float(steps or default_steps()), "samples_per_label": float(samples)}
    if results.setdefault("budget", budget) != budget:
        raise ConfigError(
            f"{file} holds runs of {_words(results['budget'])}, and now {_words(budget)} are asked for: use the same, or another folder"
        )
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


def default_steps() -> int:
    """Steps of the config."""
    return int(walt.config.load(CONFIG).training.num_steps)


def _words(budget: Mapping[str, float]) -> str:
    return f"{budget['steps']:g} steps and {budget['samples_per_label']:g} samples of each label"


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
        self._extractor = Extractor(PROTOCOLS["efficientnet-frames"])
        self._real = np.concatenate([self._extractor.of_videos(clips.videos) for clips in training])

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
        return {
            "samples": len(clips),
            "frechet": frechet_distance(self._real, self._extractor.of_videos(clips.videos)),
            **{name: float(figures[name]) for name in SAMPLE_FIGURES if figures.get(name) is not None},  # type: ignore[arg-type]
        }


BUCKETS = ("loss_t0-0.25", "loss_t0.25-0.5", "loss_t0.5-0.75", "loss_t0.75-1")


PUBLISHED_NOISE = 4.0
"""Smaller differences of FVD are not told from none: the paper gives its own figures to within 2."""
LEGEND = """Class-conditional models of eight Atari games (`configs/classes/ablation.py`: width 128, 6 layers, 17 frames of 64x64), {steps:g} steps of 16 clips
each, {seeds}. Every row is the first one with one change. Figures are means over seeds, ± half their range.

* Fréchet: the distance of {samples:g} samples to the training clips by features of EfficientNet-Lite0 (of every clip 112 means and 112 mean changes from
  frame to frame). It is no FVD, and only figures of this table can be compared. "Change" is that to the first row.
* Published: the change of FVD on UCF-101 in W.A.L.T's table 3. (*: of zero-shot FVD of a text-to-video model, half of whose rows were stills.)
* Sign: whether ours is that of the published change; "undecided" where it is within two standard errors (of the logarithm, from the spread between seeds,
  pooled over rows), "none published" where the paper's own is below {noise:g}.
* Loss: on held-out videos, and by the time t of the noise; in brackets where it is a loss of another thing (other latents or noise).
"""


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: what was done, and a row per variant."""
    baseline = _runs(results, BASELINE)
    seeds = f"{len(baseline)} seed{'s' if len(baseline) > 1 else ''}"
    legend = LEGEND.format(
        steps=results["budget"]["steps"], samples=results["floor"]["samples"], seeds=seeds, noise=PUBLISHED_NOISE
    )
    heads = ("", "Fréchet", "change", "published", "sign", "loss", "t < 0.25", "0.25-0.5", "0.5-0.75", "> 0.75")
    rows: list[tuple[str, ...]] = [(*heads, "prompt accuracy", "motion", "diversity")]
    for name, variant in VARIANTS.items():
        if runs := _runs(results, name):
            losses = [_cell(runs, key, 4) for key in ("loss", *BUCKETS)]
            compared = ("", "", "") if name == BASELINE else _compared(variant, runs, baseline, seed_spread(results))
            rows.append(
                (
                    variant.title,
                    _cell(runs, "frechet", 1),
                    *compared,
                    *(losses if variant.comparable else [f"({cell})" for cell in losses]),
                    *(_cell(runs, key, 2) for key in SAMPLE_FIGURES),
                )
            )
    floor = [results["floor"]]
    rows.append(
        ("real held-out clips", _cell(floor, "frechet", 1), *[""] * 8, *(_cell(floor, k, 2) for k in SAMPLE_FIGURES))
    )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return legend + "\n" + "\n".join([lines[0], "|" + "---|" * len(heads) + "---|---|---|", *lines[1:]]) + "\n"


Runs = list[Mapping[str, float]]


def _compared(variant: Variant, runs: Runs, baseline: Runs, spread: float | None) -> tuple[str, str, str]:
    """The change, the published one, and whether they have the same sign."""
    change = _mean(runs, "frechet") - _mean(baseline, "frechet")
    published = variant.published[0] - variant.published[1]
    ratio = np.log(_mean(runs, "frechet") / _mean(baseline, "frechet"))
    if abs(published) < PUBLISHED_NOISE:
        sign = "none published"
    elif spread is None:
        sign = "one seed"
    elif abs(ratio) < 2 * spread * np.sqrt(1 / len(runs) + 1 / len(baseline)):
        sign = "undecided"
    else:
        sign = "same" if ratio * published > 0 else "opposite"
    return f"{change:+.1f}", f"{published:+.1f}", sign


def seed_spread(results: Mapping[str, Mapping[str, float]]) -> float | None:
    """Standard deviation of the logarithm of the Fréchet distance between seeds, pooled over variants; None with one seed."""
    groups = [np.log([run["frechet"] for run in _runs(results, name)]) for name in VARIANTS]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    return float(np.sqrt(sum(np.var(g, ddof=1) * (len(g) - 1) for g in groups) / sum(len(g) - 1 for g in groups)))


def _runs(results: Mapping[str, Mapping[str, float]], name: str) -> Runs:
    return [run for key, run in results.items() if key.rpartition("-")[0] == name]


def _mean(runs: Runs, key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _cell(runs: Runs, key: str, digits: int) -> str:
    values = [run[key] for run in runs if key in run]
    if not values:
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
