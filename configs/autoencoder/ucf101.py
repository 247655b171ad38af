"""The video autoencoder for UCF-101: 17x128x128, 2,000 epochs of the 9,537 training videos."""

from walt.experiment.presets import published_autoencoder

STEPS = 2_000 * 9_537 // 256


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    return published_autoencoder("data/ucf101", STEPS, variant)
