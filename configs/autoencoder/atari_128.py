"""The shipped autoencoder trained further on games of 128x128, which it would blur: what is two pixels wide there is one in its own clips.

walt prepare atari --output=data/atari_128 --height=128 --width=128 --clips=2000
"""

import walt.config


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps."""
    config = walt.config.load(f"autoencoder/atari:{variant}" if variant else "autoencoder/atari")
    config.data.path, config.data.batch_size = "data/atari_128", 2
    config.init_from = {"path": "mini"}
    config.training.optimizer.learning_rate = 3e-4
    if not variant:
        config.training.num_steps = 300
    return config
