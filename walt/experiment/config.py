"""What an experiment is: one config per stage, put together from the configs of the rooms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from ml_collections import ConfigDict

from walt.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from walt.config import ConfigError, from_config_dict, nearest
from walt.data.config import LoaderConfig
from walt.data.records import read_manifest
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.samplers import lay_out
from walt.diffusion.task import TextSource
from walt.evaluation.config import ReconstructionEvaluation, SampleEvaluation
from walt.generation.init_from import InitRules
from walt.generation.sources import whole_path
from walt.text.bert import LONGEST
from walt.text.config import TextEncoderConfig
from walt.training.config import TrainingConfig
from walt.transformer.config import TransformerConfig


@dataclass(frozen=True)
class AutoencoderExperiment:
    """Stage 1: train the autoencoder on clips, then calibrate its latents.

    Attributes:
      clip_size: frames, height and width of the clips it is meant for; others are refused. None takes any.
      heldout_every: steps between measurements on the split "heldout".
      evaluators: figures of reconstructions, by the name under which they are logged.
      calibration_clips: training clips over which the latent statistics are computed at the end.
      init_from: start from a bundle's weights, with a fresh optimiser.
      data_checksum: filled in when training starts; a run only goes on with that data, wherever it lies.
      data_fps: filled in when training starts, frames per second of the clips: videos are to be played so.
    """

    data: LoaderConfig
    autoencoder: AutoencoderConfig
    training: TrainingConfig
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    clip_size: tuple[int, int, int] | None = None
    heldout_every: int = 500
    evaluators: Mapping[str, ReconstructionEvaluation] = field(default_factory=dict)
    calibration_clips: int = 512
    init_from: InitRules | None = None
    data_checksum: str | None = None
    data_fps: float | None = None
    stage: Literal["autoencoder"] = "autoencoder"

    def __post_init__(self) -> None:
        _check_positive(self, "heldout_every", "calibration_clips")
        _check_names(self.evaluators)
        training = self.training
        moves = training.ema_decay is not None or training.optimizer.weight_decay
        if self.loss.freeze_encoder and (self.init_from is None or moves):
            raise ConfigError(
                "loss.freeze_encoder needs init_from, for an encoder to keep, and training.ema_decay=None and "
                "training.optimizer.weight_decay=0, since averaging would round its weights and decay would shrink them"
            )


@dataclass(frozen=True)
class DiffusionExperiment:
    """Stage 2: train the transformer on latents, and with it the text encoder if there is one.

    Attributes:
      autoencoder_path: the bundle or workdir whose latents these are; its checksum must be the data set's.
      autoencoder_checksum: filled in when training starts; a run only goes on, and is only sampled, with that encoder.
      text_encoder_path: a bundle of `walt convert t5` or `minilm`: that encoder, frozen, in place of one that is trained; `text` and
        `transformer.text_width` are then taken from it. Captions that it embedded beforehand (`walt prepare text`) are used as they are.
      text: the encoder that is trained; a SentencePiece model of at most `vocab_size` pieces is trained on the captions of the data. None for
        a model of classes, or of nothing but videos.
      samples_every: steps between sample videos; 0 makes none.
      evaluators: distances of samples to real clips, by the name under which they are logged, such as "fvd".
      sample_prompts: what to show in them; by default captions of the held-out split, of as many labels as it has.
      init_from: start from a bundle's weights, with a fresh optimiser.
      text_encoder_checksum, text_source: filled in when training starts; a run is only sampled with that encoder.
      data_checksum: filled in when training starts; a run only goes on with that data, wherever it lies.
      data_fps: filled in when training starts, frames per second of the clips: videos are to be played so.
    """

    data: LoaderConfig
    autoencoder_path: str
    transformer: TransformerConfig
    text: TextEncoderConfig | None
    diffusion: DiffusionConfig
    training: TrainingConfig
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    heldout_every: int = 500
    samples_every: int = 0
    evaluators: Mapping[str, SampleEvaluation] = field(default_factory=dict)
    sample_prompts: tuple[str, ...] = ()
    text_encoder_path: str | None = None
    text_encoder_checksum: str | None = None
    text_source: TextSource = "trained"
    init_from: InitRules | None = None
    autoencoder_checksum: str | None = None
    data_checksum: str | None = None
    data_fps: float | None = None
    stage: Literal["diffusion"] = "diffusion"

    def __post_init__(self) -> None:
        _check_positive(self, "heldout_every")
        if self.samples_every < 0:
            raise ConfigError(f"samples_every must be 0 or more, got {self.samples_every}")
        self._check_evaluators()
        lay_out(self.sampler, self.diffusion.make_schedule(self.transformer.latent_shape))
        self._check_conditions()
        if self.transformer.low_resolution is not None:
            self.sampler.check_low_resolution(self.diffusion)
        if self.sample_prompts and self.transformer.low_resolution is not None:
            raise ConfigError(
                "sample_prompts must be empty for a super-resolution model: its samples are clips of the data, made larger"
            )
        if self.data.caption_length != self.diffusion.caption_length:
            raise ConfigError(
                f"data.caption_length is {self.data.caption_length}, but diffusion.caption_length is "
                f"{self.diffusion.caption_length}; set them equal"
            )

    def _check_evaluators(self) -> None:
        """Raises `ConfigError` for a model whose samples need more than a prompt, and for a sampler that cannot be."""
        _check_names(self.evaluators)
        if not self.evaluators:
            return
        transformer = self.transformer
        if transformer.low_resolution is not None or (
            transformer.text_width is None and transformer.num_classes is None
        ):
            raise ConfigError(
                "evaluators must be empty for a model that does not make videos of prompts or classes alone: measure it with walt evaluate --generated"
            )
        for name, config in self.evaluators.items():
            try:
                lay_out(config.sampling.of(self.sampler), self.diffusion.make_schedule(self.transformer.latent_shape))
            except ConfigError as error:
                raise ConfigError(f"evaluators.{name}: {error}") from error

    def _check_conditions(self) -> None:
        """Raises `ConfigError` for what would train, but not what sampling needs."""
        transformer, diffusion = self.transformer, self.diffusion
        for name, reads in (("text_dropout", transformer.text_width), ("class_dropout", transformer.num_classes)):
            if reads is not None and self.sampler.guidance != 1 and getattr(diffusion, name) == 0:
                raise ConfigError(
                    f"sampler.guidance is {self.sampler.guidance:g}, which needs a model that is sometimes told nothing; set diffusion.{name} above 0, or "
                    "sampler.guidance=1"
                )
        if transformer.canvas and self.sampler.known_guidance != 1 and diffusion.known_rate == 1:
            raise ConfigError(
                f"sampler.known_guidance is {self.sampler.known_guidance:g}, which needs a model that is sometimes shown no frames; set "
                "diffusion.known_rate below 1, or sampler.known_guidance=1"
            )
        if self.data.image_fraction and transformer.spacetime_window is None and transformer.spatial_window[0] > 1:
            raise ConfigError(
                "data.image_fraction must be 0 for a transformer whose windows all span frames: stills attend within spatial windows, and it has none"
            )
        if self.text is not None and self.text.architecture == "bert" and diffusion.caption_length > LONGEST:
            raise ConfigError(
                f"diffusion.caption_length is {diffusion.caption_length}, but this text encoder takes at most {LONGEST} tokens"
            )


ExperimentConfig = AutoencoderExperiment | DiffusionExperiment
STAGES: dict[str, type] = {"autoencoder": AutoencoderExperiment, "diffusion": DiffusionExperiment}
RUN_KEYS = ("stage", "data_checksum", "data.split", "data.seed", "data.batch_size", "data.image_fraction")
"""What may not change while a run of any stage goes on: what it learns from, and in which order."""

Experiment = TypeVar("Experiment", AutoencoderExperiment, DiffusionExperiment)


def parse(config: ConfigDict) -> ExperimentConfig:
    """The experiment a config file describes; raises `ConfigError` on an unknown stage, key or value."""
    stage = config.get("stage")
    if stage not in STAGES:
        raise ConfigError(
            f"config key 'stage' must be one of {', '.join(STAGES)}, got {stage!r}{nearest(stage, STAGES)}"
        )
    return from_config_dict(STAGES[stage], config)


def resolved(experiment: Experiment) -> Experiment:
    """The experiment as a run stores it: with whole paths, so that the run can be used from anywhere, and with the frame
    rate and the identity of its data set, which is that of the shards and not of the folder.

    Raises `DatasetError` if there is no such data set.
    """
    data, start = experiment.data, experiment.init_from
    manifest = read_manifest(data.path)
    return replace(
        experiment,
        data=replace(data, path=str(Path(data.path).resolve())),
        init_from=start and replace(start, path=whole_path(start.path)),
        data_checksum=manifest.checksum(),
        data_fps=manifest.fps,
    )


def _check_positive(experiment: object, *names: str) -> None:
    for name in names:
        if getattr(experiment, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(experiment, name)}")


LOGGED = ("heldout", "samples", "critic")


def _check_names(evaluators: Mapping[str, object]) -> None:
    """Raises `ConfigError` for names that others in the log have, or that are no file's."""
    for name in evaluators:
        if name in LOGGED or not name.isidentifier():
            raise ConfigError(
                f"an evaluator cannot be called {name!r}: take letters, digits and underscores, and none of {', '.join(LOGGED)}"
            )
