"""The mini super-resolution model: games of 64x64 to 128x128, on a CPU; behind the shipped model, a cascade.

walt prepare atari --output=data/atari_128 --height=128 --width=128 --clips=2000
walt train --config=autoencoder/atari_128 --workdir=runs/atari_128
walt prepare latents --output=data/latents_128 --input=data/atari_128 --autoencoder=runs/atari_128 --low_resolution=2
walt train --config=t2v/super_atari --workdir=runs/super --config.autoencoder_path=runs/atari_128
walt sample --cascade=runs/super --prompt="a game of Freeway" --output=out.mp4
"""

import walt.config


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps."""
    config = walt.config.load(f"t2v/atari:{variant}" if variant else "t2v/atari")
    config.data.path, config.data.batch_size = "data/latents_128", 8
    config.autoencoder_path = "runs/atari_128"
    transformer = config.transformer
    transformer.latent_shape, transformer.low_resolution, transformer.in_channels = (5, 16, 16), 2, 16
    transformer.canvas, config.diffusion.unequal_rate = False, 0.0
    transformer.scalars = ("low_resolution_time",)
    transformer.width, transformer.depth, transformer.heads = 128, 4, 2
    transformer.spatial_window = (1, 8, 8)
    # The low resolution says most of what there is to see: few steps, and no guidance.
    config.sampler.steps, config.sampler.guidance = 10, 1.0
    if not variant:
        config.training.num_steps = 800
    return config
