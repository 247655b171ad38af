"""What an experiment is: one config per stage, put together from the configs of the rooms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ml_collections import ConfigDict

from walt.autoencoder.config import AutoencoderConfig, ReconstructionLossConfig
from walt.config import ConfigError, from_config_dict, nearest
from walt.data.loader import LoaderConfig
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.generation.init_from import InitRules
from walt.text.config import TextEncoderConfig
from walt.training.config import TrainingConfig
from walt.transformer.config import TransformerConfig


@dataclass(frozen=True)
class AutoencoderExperiment:
    """Stage 1: train the autoencoder on clips, then calibrate its latents.

    Attributes:
      heldout_every: steps between measurements on the split "heldout".
      calibration_clips: training clips over which the latent statistics are computed at the end.
      init_from: start from a bundle's weights, with a fresh optimiser.
    """

    data: LoaderConfig
    autoencoder: AutoencoderConfig
    training: TrainingConfig
    loss: ReconstructionLossConfig = field(default_factory=ReconstructionLossConfig)
    heldout_every: int = 500
    calibration_clips: int = 512
    init_from: InitRules | None = None
    stage: Literal["autoencoder"] = "autoencoder"

    def __post_init__(self) -> None:
        _check_positive(self, "heldout_every", "calibration_clips")
        training = self.training
        moves = training.ema_decay is not None or training.optimizer.weight_decay
        if self.loss.freeze_encoder and (self.init_from is None or moves):
            raise ConfigError(
                "loss.freeze_encoder needs init_from, for an encoder to keep, and training.ema_decay=None and "
                "training.optimizer.weight_decay=0, since averaging would round its weights and decay would shrink them"
            )


@dataclass(frozen=True)
class DiffusionExperiment:
    """Stage 2: train the text encoder and the windowed transformer together on latents.

    Attributes:
      autoencoder_path: the bundle or workdir whose latents these are; its checksum must be the data set's.
      autoencoder_checksum: filled in when training starts; a run only goes on, and is only sampled, with that encoder.
      text: the encoder; a SentencePiece model of at most `vocab_size` pieces is trained on the captions of the data.
      samples_every: steps between sample videos; 0 makes none.
      sample_prompts: what to show in them; by default the first captions of the held-out split.
      init_from: start from a bundle's weights, with a fresh optimiser.
    """

    data: LoaderConfig
    autoencoder_path: str
    transformer: TransformerConfig
    text: TextEncoderConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    heldout_every: int = 500
    samples_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    init_from: InitRules | None = None
    autoencoder_checksum: str | None = None
    stage: Literal["diffusion"] = "diffusion"

    def __post_init__(self) -> None:
        _check_positive(self, "heldout_every")
        if self.samples_every < 0:
            raise ConfigError(f"samples_every must be 0 or more, got {self.samples_every}")
        if self.data.caption_length != self.diffusion.caption_length:
            raise ConfigError(
                f"data.caption_length is {self.data.caption_length}, but diffusion.caption_length is "
                f"{self.diffusion.caption_length}; set them equal"
            )


ExperimentConfig = AutoencoderExperiment | DiffusionExperiment
STAGES: dict[str, type] = {"autoencoder": AutoencoderExperiment, "diffusion": DiffusionExperiment}


def parse(config: ConfigDict) -> ExperimentConfig:
    """The experiment a config file describes; raises `ConfigError` on an unknown stage, key or value."""
    stage = config.get("stage")
    if stage not in STAGES:
        raise ConfigError(
            f"config key 'stage' must be one of {', '.join(STAGES)}, got {stage!r}{nearest(stage, STAGES)}"
        )
    return from_config_dict(STAGES[stage], config)


def _check_positive(experiment: object, *names: str) -> None:
    for name in names:
        if getattr(experiment, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(experiment, name)}")
