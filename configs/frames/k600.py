"""W.A.L.T on Kinetics-600: 313M parameters that predict a video from its first 5 frames (2 latent frames), 17x128x128, 360 epochs in batches
of 512. No class is told."""

import dataclasses

from walt.diffusion.configs import DiffusionConfig
from walt.experiment.published import K600_VIDEOS, VIDEO_LARGE, published_run


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    return published_run(
        "data/k600_latents",
        "runs/k600",
        variant,
        dataclasses.replace(VIDEO_LARGE, canvas=True, in_channels=25),
        batch_size=512,
        num_steps=360 * K600_VIDEOS // 512,
        diffusion=DiffusionConfig(known_rate=1.0, known_frames=(2,)),
    )
