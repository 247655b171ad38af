"""What `launch/ablations.sh` varies: the published class-conditional model (UCF-101, W.A.L.T table 3) at mini size, on game footage.

Self-conditioning, zero terminal SNR, QK-norm, LoRA of rank 2, spatiotemporal windows of half a frame's side; no stills, no guidance.
"""

from dataclasses import replace

from walt.config import from_config_dict, load, to_config_dict
from walt.diffusion.configs import SamplerConfig
from walt.experiment.config import DiffusionExperiment


def get_config(variant: str = ""):
    """Variants: "" is the whole run; "mini" is the same model for a few steps."""
    mini = from_config_dict(DiffusionExperiment, load(f"classes/atari:{variant}" if variant else "classes/atari"))
    return to_config_dict(
        replace(
            mini,
            data=replace(mini.data, image_fraction=0.0),
            transformer=replace(
                mini.transformer,
                in_channels=16,
                width=128,
                heads=4,
                spacetime_window=(5, 2, 2),
                self_conditioning=True,
                canvas=False,
            ),
            diffusion=replace(mini.diffusion, self_conditioning_rate=0.9, unequal_rate=0.0),
            sampler=SamplerConfig(steps=25, guidance=1.0),
            training=replace(
                mini.training,
                num_steps=mini.training.num_steps if variant else 1000,
                checkpoint_every=500,
                keep_checkpoints=1,
            ),
            heldout_every=500,
            samples_every=0,
        )
    )
