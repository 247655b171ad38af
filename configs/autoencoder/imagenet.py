"""The image autoencoder of the ImageNet model: clips of one frame, 256x256, 270 epochs of 1,281,167 images."""

from walt.experiment.presets import IMAGE, published_autoencoder

STEPS = 270 * 1_281_167 // 256


def get_config(variant: str = ""):
    """Variants: "" is the published run; "mini" is narrow and short."""
    return published_autoencoder("data/imagenet", STEPS, variant, IMAGE, clip_size=(1, 256, 256))
