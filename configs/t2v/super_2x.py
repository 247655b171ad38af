"""W.A.L.T's text-to-video super-resolution model "2x": 1.3B parameters that make videos twice as high and wide, 17x256x448; 675,000 steps of
512 with Adafactor and no average of the weights; captions through a frozen T5-XL. Its latents are those of `walt prepare latents
--low_resolution=2`.

The papers do not say whether these stages see images; half of every batch here are, as for the base.
"""

import dataclasses

from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.experiment.published import SUPER_RESOLUTION, published_run
from walt.text.t5 import t5
from walt.training.config import OptimizerConfig

CAPTION_LENGTH = 128


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short, with a small text encoder that is trained."""
    text = t5("xl")
    return published_run(
        "data/t2v_latents_17x256x448",
        "runs/t2v_256x448",
        variant,
        dataclasses.replace(
            SUPER_RESOLUTION,
            latent_shape=(5, 32, 56),
            width=1408,
            depth=40,
            patch=2,
            text_width=text.width,
            remat="full",
        ),
        batch_size=512,
        num_steps=675_000,
        optimizer=OptimizerConfig(name="adafactor", learning_rate=5e-4, b1=0.0, weight_decay=0.0),
        diffusion=DiffusionConfig(caption_length=CAPTION_LENGTH),
        sampler=SamplerConfig(guidance=7.5),
        ema_decay=None,
        text=text,
        text_encoder="t5_xl",
        image_fraction=0.5,
    )
