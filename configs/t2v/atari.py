"""The mini text-to-video model: 17 frames of 64x64 as 5x8x8 latents, 80 tokens, on a CPU.

The number of tokens is what costs, hence patches of 2. Self-conditioning would add a forward pass to every step and is off;
everything else is the architecture of the large models. It trains for every generation task: parts of some videos are known, of every kind, and
some have frames of unequal noise.
"""

from walt.config import ConfigError, to_config_dict
from walt.data.config import LoaderConfig
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.experiment.config import DiffusionExperiment
from walt.text.config import TextEncoderConfig
from walt.training.config import OptimizerConfig, TrainingConfig
from walt.transformer.config import TransformerConfig

CAPTION_LENGTH = 16


def get_config(variant: str = ""):
    """Variants: "" is the shipped model; "mini" is the same model for a few steps."""
    if variant not in ("", "mini"):
        raise ConfigError(f"t2v/atari has no variant {variant!r}; it has 'mini'")
    short = variant == "mini"
    return to_config_dict(
        DiffusionExperiment(
            data=LoaderConfig(path="data/latents", batch_size=16, image_fraction=0.25, caption_length=CAPTION_LENGTH),
            autoencoder_path="mini",
            transformer=TransformerConfig(
                latent_shape=(5, 8, 8),
                in_channels=17,
                out_channels=8,
                width=192,
                depth=6,
                heads=3,
                patch=2,
                spatial_window=(1, 4, 4),
                spacetime_window=(5, 4, 4),
                text_width=128,
                self_conditioning=False,
                canvas=True,
                remat="dots",
            ),
            text=TextEncoderConfig(vocab_size=256, width=128, depth=1, heads=4, head_width=32, mlp_width=256),
            diffusion=DiffusionConfig(
                self_conditioning_rate=0.0,
                caption_length=CAPTION_LENGTH,
                known_rate=0.25,
                known_patterns=("first", "last", "ends", "frames", "gap", "box"),
                unequal_rate=0.1,
            ),
            sampler=SamplerConfig(steps=25, guidance=2.0),
            training=TrainingConfig(
                num_steps=20 if short else 4500,
                log_every=5 if short else 25,
                checkpoint_every=250,
                keep_checkpoints=2,
                ema_decay=0.995,
                optimizer=OptimizerConfig(
                    learning_rate=1e-3,
                    warmup_steps=5 if short else 50,
                    final_fraction=0.02,
                ),
            ),
            heldout_every=500,
            samples_every=20 if short else 1500,
        )
    )
