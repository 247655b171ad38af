"""The film's autoencoder trained further, against a critic and with a perceptual loss: sharper, for some dB of PSNR.

Starts from a finished run of autoencoder/film; its weights want small steps. The critic is a narrow one, and a step still takes
three to four times as long as one without: 450 are 46 minutes on two cores.
"""

from walt.autoencoder.config import AdversarialConfig, AutoencoderLossConfig, DiscriminatorConfig, PerceptualConfig
from walt.experiment.presets import mini_autoencoder


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps, from random weights."""
    critic = DiscriminatorConfig(base_channels=16, channel_multipliers=(1, 2, 4, 4))
    loss = AutoencoderLossConfig(perceptual=PerceptualConfig(), adversarial=AdversarialConfig(discriminator=critic))
    config = mini_autoencoder("data/film", 450, variant, loss)
    config.training.optimizer.learning_rate = 1e-4
    config.training.optimizer.b1 = 0.0
    if not variant:
        config.training.optimizer.warmup_steps = 30
        config.init_from = {"path": "runs/film"}
    return config
