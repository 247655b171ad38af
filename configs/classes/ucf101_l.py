"""W.A.L.T-L on UCF-101: 313M parameters, 17x128x128 of 101 classes, 60,000 steps of 256."""

import dataclasses

from walt.experiment.published import VIDEO_LARGE, published_run


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    model = dataclasses.replace(VIDEO_LARGE, num_classes=101)
    return published_run("data/ucf101_latents", "runs/ucf101", variant, model, batch_size=256, num_steps=60_000)
