"""The whole path in one job: footage, autoencoder, latents, transformer, videos, figures, report.

Every stage leaves its result in the output folder. When the job is started again, footage and latents are kept, training
goes on where it stopped, and the short stages after it are done anew; a finished job is left as it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walt.autoencoder.config import AutoencoderConfig
from walt.config import ConfigError, apply_overrides, from_config_dict, load, to_config_dict, to_json
from walt.data.recipes import atari
from walt.evaluation import (
    Report,
    atari_mini_bars,
    describe_environment,
    evaluate_clips,
    write_report,
)
from walt.evaluation.source import PreparedClips, read_clips
from walt.experiment import latents
from walt.experiment.config import AutoencoderExperiment, DiffusionExperiment, parse
from walt.experiment.progress import Progress, write_json
from walt.experiment.sampling import reconstruct, sample_labels, write_videos
from walt.experiment.stage1 import autoencoder_task, clip_loader, train_autoencoder
from walt.experiment.stage2 import diffusion_task, latent_loader, train_diffusion, workdir_tokenizer
from walt.generation.bundle import Bundle, write_bundle
from walt.generation.init_from import InitRules
from walt.generation.pipeline import Pipeline
from walt.generation.sources import open_autoencoder, open_bundle
from walt.training.budget import steps_for_budget
from walt.training.config import TrainingConfig
from walt.training.metrics import read_metrics

RESULTS = {"report": "report.html", "figures": "metrics.json", "videos": "videos", "model": "bundle"}
"""What the job leaves for its user, by name inside the output folder."""

SHORT_TRAINING = {
    "data.batch_size": "8",
    "training.optimizer.learning_rate": "2e-3",
    "diffusion.prediction": "x0",
    "diffusion.loss_weight": "snr",
    "diffusion.snr_bounds": "1,5",
    "sampler.steps": "8",
    "sampler.guidance": "1.5",
}
"""What suits a transformer of a few minutes. More and smaller batches teach more in that time. What it still gets wrong is
flicker: a network that predicts v has to give back the noise of every patch, which it has not learned, and the sampler keeps
what it missed; one that predicts x0 has only to see what a game looks like. Measured on 1,000 clips and 660 steps: frames
change 2.0 times as much as real ones with v, 1.6 times with x0 and the same loss on v, 1.2 times with the weight of small
noise bounded, 0.8 times without any weight, but then samples of one prompt are too much alike."""


@dataclass(frozen=True)
class QuickstartConfig:
    """What to run.

    Attributes:
      output: folder of everything the job makes.
      clips, heldout: clips to record, over all games.
      games: which to record.
      autoencoder: what stage 1 starts from.
      from_scratch: let stage 1 start from nothing instead.
      autoencoder_seconds, transformer_seconds: training time of the stages. The number of steps follows from the speed of
        this machine and is fixed at the first start.
      seeds: samples per prompt; there is one prompt per game.
    """

    output: str
    clips: int = 1000
    heldout: int = 128
    games: tuple[str, ...] = atari.GAMES
    autoencoder: str = "mini"
    from_scratch: bool = False
    autoencoder_seconds: float = 60.0
    transformer_seconds: float = 300.0
    seeds: int = 8

    def __post_init__(self) -> None:
        for name in ("autoencoder_seconds", "transformer_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        # What the evaluation at the end needs.
        for name, least, why in (
            ("seeds", 2, "diversity compares samples of one prompt"),
            ("heldout", 2 * len(self.games), "a classifier is fitted and tested on clips of every game"),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, since {why}; got {getattr(self, name)}")


def run(config: QuickstartConfig) -> dict[str, Any]:
    """Runs what is not done yet, prints where the results are, and returns the figures of `metrics.json`.

    Where all results are there it only prints. Nothing is written before the arguments are known to be good.
    """
    output = Path(config.output)
    request = dataclasses.asdict(config)
    del request["output"]
    progress = Progress(output, request)
    # The time of the report tells results of this version from older ones, whose figures lack what is printed.
    finished = "write report" in progress.seconds and all((output / name).exists() for name in RESULTS.values())
    if not finished:
        _make_results(config, output, progress)
    figures = json.loads((output / RESULTS["figures"]).read_text())
    _print_summary(output, figures)
    return figures


def _make_results(config: QuickstartConfig, output: Path, progress: Progress) -> None:
    """The stages, one after the other; the figures are written last, and so say that all of them are done."""
    recipe = atari.AtariConfig(
        output=str(output / "footage"), games=config.games, clips=config.clips, heldout=config.heldout
    )
    atari.check_games(config.games)
    start = None if config.from_scratch else open_autoencoder(config.autoencoder)

    with progress.stage("record footage", result=output / "footage"):
        atari.prepare(recipe)
    with progress.stage("train autoencoder", continues=True):
        stage1 = _train_stage1(config, start, output, progress)
    with progress.stage("encode latents", result=output / "latents"):
        latents.prepare(output / "autoencoder", output / "footage", output / "latents")
    with progress.stage("train transformer", continues=True):
        stage2 = _train_stage2(config, output, progress)
        bundle = open_bundle(output / "transformer")
        write_bundle(bundle, output / RESULTS["model"])
    with progress.stage("sample videos"):
        pipeline = Pipeline(bundle)
        heldout, training = read_clips(output / "footage", "heldout"), PreparedClips(output / "footage")
        generated = sample_labels(pipeline, heldout, config.seeds)
        write_videos(generated, output / RESULTS["videos"], pipeline.fps)
    with progress.stage("evaluate"):
        tuned = reconstruct(pipeline, heldout)
        reconstructions = tuned if start is None else reconstruct(Pipeline(start), heldout)
        result = evaluate_clips(heldout, reconstructions=reconstructions, generated=generated, training=training)
        after = evaluate_clips(heldout, reconstructions=tuned, training=training).headline()
    environment, bars = describe_environment(), atari_mini_bars(result)
    if start is not None:
        note = f"as shipped; {after['heldout_psnr']:.1f} dB after stage 1"
        bars = tuple(dataclasses.replace(bar, note=note) if bar.metric == "heldout_psnr" else bar for bar in bars)
    with progress.stage("write report"):
        report = Report(
            title="WALT quickstart",
            summary=_summary(config),
            result=result,
            bars=bars,
            metrics={
                "Stage 1: autoencoder": read_metrics(output / "autoencoder"),
                "Stage 2: transformer": read_metrics(output / "transformer"),
            },
            heldout=heldout,
            reconstructions=reconstructions,
            generated=generated,
            fps=pipeline.fps,
            seconds_by_stage=progress.seconds,
            configs={"Stage 1": stage1, "Stage 2": stage2},
            environment=environment | {"peak_memory_gb": progress.peak_memory_gb},
        )
        write_report(report, output / RESULTS["report"])
    figures = {
        **result.to_dict(),
        "heldout_psnr_after_training": after["heldout_psnr"],
        "psnr_moving_after_training": after["psnr_moving"],
        "bars": [dataclasses.asdict(bar) for bar in bars],
        "prompts": list(dict.fromkeys(generated.prompts)),
        "seconds_total": round(sum(progress.seconds.values()), 1),
        "seconds_by_stage": progress.seconds,
        "peak_memory_gb": progress.peak_memory_gb,
        "environment": environment,
    }
    write_json(output / RESULTS["figures"], figures)


def _train_stage1(config: QuickstartConfig, start: Bundle | None, output: Path, progress: Progress) -> str:
    """Trains the autoencoder for the planned time, on from `start`; returns its resolved config as JSON."""
    experiment = parse(apply_overrides(load("autoencoder/atari"), {"data.path": str(output / "footage")}))
    assert isinstance(experiment, AutoencoderExperiment)
    experiment = dataclasses.replace(experiment, heldout_every=50, calibration_clips=256)
    if start is not None:
        shape = from_config_dict(AutoencoderConfig, start.components["autoencoder"].config)
        # Trained weights want a small step.
        optimizer = dataclasses.replace(experiment.training.optimizer, learning_rate=1e-4)
        experiment = dataclasses.replace(
            experiment,
            autoencoder=shape,
            training=dataclasses.replace(experiment.training, optimizer=optimizer),
            init_from=InitRules(config.autoencoder),
        )

    task, loader = autoencoder_task(experiment), clip_loader(experiment)
    steps = progress.decide(
        "autoencoder_steps",
        lambda: steps_for_budget(task, loader, experiment.training, config.autoencoder_seconds),
    )
    planned = dataclasses.replace(experiment, training=_with_steps(experiment.training, steps))
    train_autoencoder(planned, output / "autoencoder")
    return to_json(to_config_dict(planned))


def _train_stage2(config: QuickstartConfig, output: Path, progress: Progress) -> str:
    """Trains tokenizer, text encoder and transformer from nothing; returns the resolved config as JSON."""
    workdir = output / "transformer"
    overrides = {
        "data.path": str(output / "latents"),
        "autoencoder_path": str(output / "autoencoder"),
        "samples_every": "0",  # the next stage makes the videos
        **SHORT_TRAINING,
    }
    experiment = parse(apply_overrides(load("t2v/atari"), overrides))
    assert isinstance(experiment, DiffusionExperiment)
    tokenizer = workdir_tokenizer(experiment, workdir)

    task, loader = diffusion_task(experiment), latent_loader(experiment, tokenizer, "train")
    steps = progress.decide(
        "transformer_steps",
        lambda: steps_for_budget(task, loader, experiment.training, config.transformer_seconds),
    )
    planned = dataclasses.replace(experiment, training=_with_steps(experiment.training, steps))
    train_diffusion(planned, workdir)
    return to_json(to_config_dict(planned))


def _with_steps(training: TrainingConfig, steps: int) -> TrainingConfig:
    """Another length; a short run warms up for at most a tenth of it."""
    warmup = min(training.optimizer.warmup_steps, steps // 10)
    optimizer = dataclasses.replace(training.optimizer, warmup_steps=warmup)
    return dataclasses.replace(training, num_steps=steps, optimizer=optimizer)


def _summary(config: QuickstartConfig) -> str:
    start = "from nothing" if config.from_scratch else f"starting from the bundle {config.autoencoder!r}"
    shown = (
        ""
        if config.from_scratch
        else f" Reconstructions are shown and measured as {config.autoencoder!r} makes them, before stage 1."
    )
    return (
        f"{config.clips} clips of {len(config.games)} Atari games, recorded here. Stage 1, the causal autoencoder, was trained for "
        f"{config.autoencoder_seconds:.0f} s {start}; stage 2, the text-conditioned windowed transformer, for "
        f"{config.transformer_seconds:.0f} s from nothing.{shown}"
    )


def _print_summary(output: Path, figures: Mapping[str, Any]) -> None:
    print()
    for bar in figures["bars"]:
        mark = {True: "ok  ", False: "MISS", None: "-   "}[bar["passed"]]
        print(f"{mark} {bar['title']}: {bar['shown']} (required {bar['required']})")
    print(f"\n{figures['seconds_total'] / 60:.1f} minutes in all. Results:")
    for what, name in RESULTS.items():
        print(f"  {what:8} {output / name}")
    print(f"  checkpoint {output / 'transformer' / 'checkpoints'}")
    print(
        f"\nMore videos: walt sample --checkpoint={output / RESULTS['model']} --prompt='{figures['prompts'][0]}' "
        "--output=sample.mp4"
    )
