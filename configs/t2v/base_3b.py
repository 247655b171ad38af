"""W.A.L.T's text-to-video base model: 3B parameters, 17x128x128, half of every batch images, 550,000 steps of 512 with Adafactor and no
average of the weights; captions through a frozen T5-XL (`walt convert t5 --input=t5-v1_1-xl --output=t5_xl`).

It learns to go on from one or two known latent frames as well. The papers do not say how many layers of which width make 3B: 52 of
1,920 do. Prepare the captions (`walt prepare text`) unless the encoder is to run in every step.
"""

import dataclasses

from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.experiment.published import VIDEO_LARGE, published_run
from walt.text.t5 import t5
from walt.training.config import OptimizerConfig

CAPTION_LENGTH = 128


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short, with a small text encoder that is trained."""
    text = t5("xl")
    return published_run(
        "data/t2v_latents",
        "runs/t2v_128",
        variant,
        dataclasses.replace(
            VIDEO_LARGE, width=1920, depth=52, canvas=True, in_channels=25, text_width=text.width, remat="attention"
        ),
        batch_size=512,
        num_steps=550_000,
        optimizer=OptimizerConfig(name="adafactor", learning_rate=2e-4, b1=0.0, weight_decay=0.0),
        diffusion=DiffusionConfig(caption_length=CAPTION_LENGTH),
        sampler=SamplerConfig(guidance=7.5),
        ema_decay=None,
        text=text,
        text_encoder="t5_xl",
        image_fraction=0.5,
    )
