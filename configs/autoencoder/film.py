"""The mini autoencoder for natural-looking video: 64x64 crops of a film, 8x8x4 compression, 8 channels, on a CPU.

The shape of autoencoder/atari. A film has texture everywhere and moves as a whole, so no pixel counts more than another.
Three hours on two cores are about 7,000 steps.
"""

from walt.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from walt.config import ConfigError, to_config_dict
from walt.data.loader import LoaderConfig
from walt.experiment.config import AutoencoderExperiment
from walt.training.config import OptimizerConfig, TrainingConfig


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps."""
    if variant not in ("", "mini"):
        raise ConfigError(f"autoencoder/film has no variant {variant!r}; it has 'mini'")
    short = variant == "mini"
    return to_config_dict(
        AutoencoderExperiment(
            data=LoaderConfig(path="data/film", batch_size=4),
            autoencoder=AutoencoderConfig(
                latent_channels=8,
                base_channels=16,
                channel_multipliers=(3, 6, 8),
                res_blocks=1,
                mid_blocks=1,
                strides=((2, 2), (2, 1)),
                temporal_kernels=(1, 1, 3),
                patchify=4,
                groups=8,
            ),
            loss=AutoencoderLossConfig(),
            training=TrainingConfig(
                num_steps=20 if short else 7000,
                log_every=5 if short else 25,
                checkpoint_every=250,
                keep_checkpoints=2,
                ema_decay=0.998,
                optimizer=OptimizerConfig(
                    name="adam",
                    learning_rate=1e-3,
                    warmup_steps=5 if short else 100,
                    b2=0.99,
                    weight_decay=0.0,
                    final_fraction=0.02,
                ),
            ),
            heldout_every=250,
        )
    )
