"""The mini model of classes: t2v/atari, told the game by its label, through adaptive layer norms, as the published
class-conditional models are."""

import walt.config


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps."""
    config = walt.config.load(f"t2v/atari:{variant}" if variant else "t2v/atari")
    config.text = None
    config.transformer.text_width = None
    config.transformer.num_classes = 8
    return config
