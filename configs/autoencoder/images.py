"""The image autoencoder that the video ones can be inflated from (`walt convert inflate`): theirs less time, for clips of one frame,
128x128. As many steps as the ImageNet model.
"""

import dataclasses

from walt.experiment.presets import VIDEO, published_autoencoder

STEPS = 270 * 1_281_167 // 256


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    image = dataclasses.replace(
        VIDEO, temporal_kernels=(1, 1, 1, 1), strides=tuple((1, space) for _, space in VIDEO.strides)
    )
    return published_autoencoder("data/images", STEPS, variant, image, clip_size=(1, 128, 128))
