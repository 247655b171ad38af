"""A video autoencoder out of a trained image autoencoder, as a bundle that stage 1 can start from."""

from __future__ import annotations

from typing import Literal

from etils import epath
from ml_collections import ConfigDict

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.inflate import inflate
from walt.config import ConfigError, from_config_dict, to_config_dict
from walt.experiment.config import AutoencoderExperiment, parse
from walt.generation.bundle import Bundle, Component
from walt.generation.sources import open_bundle


def inflated_bundle(path: epath.PathLike, weights: Literal["ema", "raw"], config: ConfigDict) -> Bundle:
    """The image autoencoder of a bundle or workdir, inflated to the shape of a stage-1 config.

    Latent statistics carry over: the inflated model gives the same latents for pictures. Raises `ConfigError` if the
    config is not one of stage 1, or differs from the image autoencoder in more than time.
    """
    experiment = parse(config)
    if not isinstance(experiment, AutoencoderExperiment):
        raise ConfigError(f"an autoencoder is inflated to a config of stage 'autoencoder', got {experiment.stage!r}")
    source = open_bundle(path, weights)
    if "autoencoder" not in source.components:
        raise ConfigError(f"{path} holds no autoencoder but {', '.join(source.components)}")
    image = source.components["autoencoder"]
    params = inflate(image.params, from_config_dict(AutoencoderConfig, image.config), experiment.autoencoder)
    video = Component(to_config_dict(experiment.autoencoder).to_dict(), params, image.extra)
    return Bundle({"autoencoder": video}, card={"inflated_from": str(path), "image_model": dict(source.card)})
