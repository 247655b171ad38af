"""U-ViT-H/2 (Bao et al. 2023) on ImageNet: 501M parameters on latents of 32x32x4; time and class as tokens, long skip
connections, prediction of the noise on the linear schedule, 500,000 steps of 1,024.

Of the published model it lacks the last 3x3 convolution. Its 4-channel latents are those of an autoencoder trained here.
"""

import dataclasses

from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.experiment.published import IMAGE_ONLY, published_run
from walt.training.config import OptimizerConfig


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    return published_run(
        "data/imagenet_latents",
        "runs/imagenet",
        variant,
        dataclasses.replace(IMAGE_ONLY, adaln="none", long_skips=True, depth=29),
        batch_size=1024,
        num_steps=500_000,
        optimizer=OptimizerConfig(learning_rate=2e-4, schedule="constant", b1=0.99, b2=0.99, weight_decay=0.03),
        diffusion=DiffusionConfig(prediction="noise", zero_terminal_snr=False, self_conditioning_rate=0.0),
        sampler=SamplerConfig(solver="dpmpp_2m", guidance=1.4),
    )
