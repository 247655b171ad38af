"""The video autoencoder for Kinetics-600: 17x128x128, 270,000 steps."""

from walt.experiment.presets import published_autoencoder


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    return published_autoencoder("data/k600", 270_000, variant)
