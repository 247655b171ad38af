"""Stage-2 runs as published (W.A.L.T table 8, DiT, U-ViT), which several shipped configs share but for model and data.

Where the papers are silent the choices are those of `TransformerConfig`, `DiffusionConfig` and `OptimizerConfig`. The variant
"mini" of each is the same run, narrow and short, for two CPU cores.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from walt.config import ConfigError, to_config_dict
from walt.data.config import LoaderConfig
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.experiment.config import DiffusionExperiment
from walt.text.config import TextEncoderConfig
from walt.training.config import OptimizerConfig, TrainingConfig
from walt.transformer.config import TransformerConfig

UCF101_VIDEOS = 9_537
K600_VIDEOS = 390_000  # about: clips vanish from the web
IMAGENET_IMAGES = 1_281_167

VIDEO_LARGE = TransformerConfig(
    latent_shape=(5, 16, 16),
    in_channels=16,
    out_channels=8,
    width=1024,
    depth=24,
    heads=16,
    dtype="bfloat16",
    remat="attention",
)
SUPER_RESOLUTION = dataclasses.replace(  # the 9:16 models, whose tokens are 16x28 a frame whatever the resolution
    VIDEO_LARGE,
    latent_shape=(5, 32, 56),
    in_channels=24,
    patch=2,
    low_resolution=2,
    scalars=("low_resolution_time",),
    spatial_window=(1, 16, 28),
    spacetime_window=(5, 8, 14),
)
IMAGE_ONLY = (
    TransformerConfig(  # attention over the whole frame of 256x256 pixels, patches of 2x2 latents, nothing else
        latent_shape=(1, 32, 32),
        in_channels=4,
        out_channels=4,
        width=1152,
        depth=28,
        heads=16,
        patch=2,
        spatial_window=(1, 16, 16),
        spacetime_window=None,
        num_classes=1000,
        self_conditioning=False,
        qk_norm=False,
        relative_bias=False,
        dtype="bfloat16",
        remat="attention",
    )
)


def published_run(
    data: str,
    autoencoder: str,
    variant: str,
    transformer: TransformerConfig,
    *,
    batch_size: int,
    num_steps: int,
    optimizer: OptimizerConfig | None = None,
    diffusion: DiffusionConfig | None = None,
    sampler: SamplerConfig | None = None,
    ema_decay: float | None = 0.9999,
    text: TextEncoderConfig | None = None,
    text_encoder: str | None = None,
    image_fraction: float = 0.0,
) -> ConfigDict:
    """A run on latents at `data`, made by the autoencoder at `autoencoder`; `text` is the shape of the frozen `text_encoder`, if any."""
    if variant not in ("", "mini"):
        raise ConfigError(f"this config has no variant {variant!r}; it has 'mini'")
    diffusion = DiffusionConfig() if diffusion is None else diffusion
    experiment = DiffusionExperiment(
        data=LoaderConfig(
            path=data,
            batch_size=batch_size,
            workers=4,
            image_fraction=image_fraction,
            caption_length=diffusion.caption_length,
        ),
        autoencoder_path=autoencoder,
        transformer=transformer,
        text=text,
        text_encoder_path=text_encoder,
        text_source="trained" if text_encoder is None else "frozen",
        diffusion=diffusion,
        sampler=SamplerConfig() if sampler is None else sampler,
        training=TrainingConfig(
            num_steps=num_steps,
            checkpoint_every=5_000,
            ema_decay=ema_decay,
            optimizer=OptimizerConfig() if optimizer is None else optimizer,
        ),
        heldout_every=5_000,
    )
    return to_config_dict(_mini(experiment) if variant == "mini" else experiment)


def _mini(experiment: DiffusionExperiment) -> DiffusionExperiment:
    transformer, training = experiment.transformer, experiment.training
    if experiment.text is not None:  # a small encoder that is trained, in place of the published one
        text = TextEncoderConfig()
        transformer = dataclasses.replace(transformer, text_width=text.width)
        experiment = dataclasses.replace(experiment, text=text, text_encoder_path=None, text_source="trained")
    return dataclasses.replace(
        experiment,
        data=dataclasses.replace(experiment.data, batch_size=2, workers=0),
        transformer=dataclasses.replace(
            transformer, width=64, depth=2 + transformer.long_skips, heads=2, dtype="float32", remat="none"
        ),
        training=dataclasses.replace(
            training,
            num_steps=20,
            log_every=5,
            checkpoint_every=20,
            optimizer=dataclasses.replace(training.optimizer, warmup_steps=5),
        ),
        heldout_every=20,
    )
