"""The text-to-video autoencoder at 17x256x448, 1,000,000 steps."""

from walt.experiment.presets import published_autoencoder


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    return published_autoencoder("data/t2v_256x448", 1_000_000, variant, clip_size=(17, 256, 448))
