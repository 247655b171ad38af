"""Runs that several shipped configs share but for their data and length."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from walt.autoencoder.config import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderLossConfig,
    DiscriminatorConfig,
    PerceptualConfig,
)
from walt.config import ConfigError, to_config_dict
from walt.data.config import LoaderConfig
from walt.experiment.config import AutoencoderExperiment
from walt.training.config import OptimizerConfig, TrainingConfig

VIDEO = AutoencoderConfig(dtype="bfloat16")
IMAGE = AutoencoderConfig(
    channel_multipliers=(1, 1, 2, 4), temporal_kernels=(1, 1, 1, 1), strides=((1, 2),) * 3, dtype="bfloat16"
)
CRITIC = DiscriminatorConfig(dtype="bfloat16")


MINI = AutoencoderConfig(
    latent_channels=8,
    base_channels=16,
    channel_multipliers=(3, 6, 8),
    res_blocks=1,
    mid_blocks=1,
    strides=((2, 2), (2, 1)),
    temporal_kernels=(1, 1, 3),
    patchify=4,
    groups=8,
)


def mini_autoencoder(data: str, num_steps: int, variant: str, loss: AutoencoderLossConfig) -> ConfigDict:
    """Stage 1 on a CPU. A patchify stem of 4 and spatial-only convolutions above the latent grid keep it cheap: 5.8M
    parameters, 5.6 GFLOPs forward per clip of 17x64x64. The class is that of the large ones, and `loss` the caller's; Adam with
    b1 = 0.9, a rate ten times as high and clipped gradients suit short runs. The variant "mini" is the same model for a few steps.
    """
    if variant not in ("", "mini"):
        raise ConfigError(f"this config has no variant {variant!r}; it has 'mini'")
    short = variant == "mini"
    optimizer = OptimizerConfig(
        name="adam",
        learning_rate=1e-3,
        warmup_steps=5 if short else 50,
        b2=0.99,
        weight_decay=0.0,
        final_fraction=0.02,
    )
    training = TrainingConfig(
        num_steps=20 if short else num_steps,
        log_every=5 if short else 25,
        checkpoint_every=250,
        keep_checkpoints=2,
        ema_decay=0.998,
        optimizer=optimizer,
    )
    clips = LoaderConfig(path=data, batch_size=4)
    return to_config_dict(
        AutoencoderExperiment(
            data=clips,
            autoencoder=MINI,
            loss=loss,
            training=training,
            heldout_every=250,
            calibration_clips=8 if short else 512,
        )
    )


def published_autoencoder(
    data: str,
    num_steps: int,
    variant: str,
    autoencoder: AutoencoderConfig = VIDEO,
    *,
    clip_size: tuple[int, int, int] = (17, 128, 128),
) -> ConfigDict:
    """Stage 1 as published (W.A.L.T table 8 and section 3.1, after MAGVIT-v2): batch 256, Adam with b1 = 0, peak rate 1e-4,
    the adversarial and perceptual losses from step 0.

    The papers are silent on the length of the warm-up and on the perceptual network's weights; both are our choice. The
    variant "mini" is the same run, narrow and short: two CPU cores and clips of any size the encoder takes.
    """
    if variant not in ("", "mini"):
        raise ConfigError(f"this config has no variant {variant!r}; it has 'mini'")
    experiment = AutoencoderExperiment(
        data=LoaderConfig(path=data, batch_size=256, workers=4),
        autoencoder=autoencoder,
        loss=AutoencoderLossConfig(perceptual=PerceptualConfig(), adversarial=AdversarialConfig(discriminator=CRITIC)),
        training=TrainingConfig(
            num_steps=num_steps,
            checkpoint_every=5_000,
            clip_norm=None,
            ema_decay=0.999,
            optimizer=OptimizerConfig(
                name="adam", learning_rate=1e-4, warmup_steps=5_000, b1=0.0, b2=0.99, weight_decay=0.0
            ),
        ),
        clip_size=clip_size,
        heldout_every=5_000,
        calibration_clips=4_096,
    )
    return to_config_dict(_mini(experiment) if variant == "mini" else experiment)


def _mini(experiment: AutoencoderExperiment) -> AutoencoderExperiment:
    narrow = dataclasses.replace(
        experiment.autoencoder, base_channels=8, res_blocks=1, mid_blocks=1, groups=4, dtype="float32"
    )
    critic = DiscriminatorConfig(base_channels=8, channel_multipliers=CRITIC.channel_multipliers[:4])
    assert experiment.loss.adversarial is not None
    adversarial = dataclasses.replace(experiment.loss.adversarial, discriminator=critic)
    training = experiment.training
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, batch_size=2, workers=0),
        autoencoder=narrow,
        loss=dataclasses.replace(experiment.loss, adversarial=adversarial),
        training=dataclasses.replace(
            training,
            num_steps=20,
            log_every=5,
            checkpoint_every=20,
            optimizer=dataclasses.replace(training.optimizer, warmup_steps=5),
        ),
        clip_size=None,
        heldout_every=20,
        calibration_clips=8,
    )
