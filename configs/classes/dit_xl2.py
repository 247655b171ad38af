"""DiT-XL/2 (Peebles & Xie 2023) on ImageNet: 675M parameters on latents of 32x32x4; AdaLN-Zero, prediction of the noise on the
linear schedule, 7 million steps of 256 at a constant rate.

Of the published model it lacks the learned variance. Its 4-channel latents are those of an autoencoder trained here.
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
        dataclasses.replace(IMAGE_ONLY, adaln="separate", position="sincos"),
        batch_size=256,
        num_steps=7_000_000,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=0, schedule="constant", b2=0.999, weight_decay=0.0),
        diffusion=DiffusionConfig(prediction="noise", zero_terminal_snr=False, self_conditioning_rate=0.0),
        sampler=SamplerConfig(steps=250, solver="ddpm", guidance=1.5),
    )
