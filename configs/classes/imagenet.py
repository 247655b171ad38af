"""W.A.L.T on ImageNet: 460M parameters, images of 256x256 in 1,000 classes, 350 epochs in batches of 1,024.

All layers are spatial and see the whole frame (choice), each with its own AdaLN. Sampling with guidance rises along a power
cosine, as for the published 2.40 FID; its scale and power are our choice.
"""

import dataclasses

from walt.diffusion.configs import SamplerConfig
from walt.experiment.published import IMAGENET_IMAGES, VIDEO_LARGE, published_run


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    model = dataclasses.replace(
        VIDEO_LARGE,
        latent_shape=(1, 32, 32),
        spatial_window=(1, 32, 32),
        spacetime_window=None,
        num_classes=1000,
        adaln="separate",
    )
    return published_run(
        "data/imagenet_latents",
        "runs/imagenet",
        variant,
        model,
        batch_size=1024,
        num_steps=350 * IMAGENET_IMAGES // 1024,
        sampler=SamplerConfig(guidance=4.0, guidance_schedule="power_cosine", guidance_power=4.0),
    )
