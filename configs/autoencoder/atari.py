"""The mini autoencoder: 64x64 footage of Atari games, on a CPU.

A patchify stem of 4 and spatial-only convolutions above the latent grid keep it cheap: 5.8M parameters, 5.6 GFLOPs forward
per clip of 17 frames. It is the class and the loss of the large ones.
"""

from walt.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from walt.config import ConfigError, to_config_dict
from walt.data.loader import LoaderConfig
from walt.experiment.config import AutoencoderExperiment
from walt.training.config import OptimizerConfig, TrainingConfig


def get_config(variant: str = ""):
    """Variants: "" is the shipped model; "mini" is the same model for a few steps."""
    if variant not in ("", "mini"):
        raise ConfigError(f"autoencoder/atari has no variant {variant!r}; it has 'mini'")
    short = variant == "mini"
    return to_config_dict(
        AutoencoderExperiment(
            data=LoaderConfig(path="data/atari", batch_size=4),
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
            loss=AutoencoderLossConfig(motion_weight=4.0, difference_weight=0.5, latent_noise=0.1),
            training=TrainingConfig(
                num_steps=20 if short else 3000,
                log_every=5 if short else 25,
                checkpoint_every=250,
                keep_checkpoints=2,
                ema_decay=0.998,
                optimizer=OptimizerConfig(
                    name="adam",
                    learning_rate=1e-3,
                    warmup_steps=5 if short else 50,
                    b2=0.99,
                    weight_decay=0.0,
                    final_fraction=0.02,
                ),
            ),
            heldout_every=250,
        )
    )
