"""The mini autoencoder for natural-looking video: 64x64 crops of a film, 8x8x4 compression, 8 channels, on a CPU.

A film has texture everywhere and moves as a whole, so no pixel counts more than another. 5,000 steps take two to three hours on
two cores.
"""

from walt.autoencoder.config import AutoencoderLossConfig
from walt.experiment.presets import mini_autoencoder


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps."""
    return mini_autoencoder("data/film", 5000, variant, AutoencoderLossConfig())
