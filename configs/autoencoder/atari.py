"""The mini autoencoder: 64x64 footage of Atari games, on a CPU."""

from walt.autoencoder.config import AutoencoderLossConfig
from walt.experiment.presets import mini_autoencoder


def get_config(variant: str = ""):
    """Variants: "" is the shipped model; "mini" is the same model for a few steps."""
    loss = AutoencoderLossConfig(motion_weight=4.0, difference_weight=0.5, latent_noise=0.1)
    return mini_autoencoder("data/atari", 3000, variant, loss)
