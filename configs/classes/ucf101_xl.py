"""W.A.L.T-XL on UCF-101: 460M parameters; otherwise as W.A.L.T-L."""

import dataclasses

from walt.experiment.published import VIDEO_LARGE, published_run


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    model = dataclasses.replace(VIDEO_LARGE, num_classes=101, width=1152, depth=28)
    return published_run("data/ucf101_latents", "runs/ucf101", variant, model, batch_size=256, num_steps=60_000)
