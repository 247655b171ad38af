"""A trained stage-2 model as the start of one for videos of another size."""

from __future__ import annotations

import dataclasses

from etils import epath
from ml_collections import ConfigDict

from walt.config import ConfigError, from_config_dict
from walt.experiment.config import DiffusionExperiment, parse
from walt.generation.bundle import Bundle, BundleError, Component
from walt.generation.sources import Weights, open_bundle
from walt.transformer.config import TransformerConfig
from walt.transformer.resize import resize


def resized_bundle(path: epath.PathLike, weights: Weights, config: ConfigDict) -> Bundle:
    """The model at `path` with the video size and windows of a stage-2 config, whose `init_from` can start from it.

    Raises `ConfigError` if the config differs in more than sizes, `BundleError` if there is no transformer at `path`.
    """
    experiment = parse(config)
    if not isinstance(experiment, DiffusionExperiment):
        raise ConfigError("the config of the model to make must be one of stage 2, which has a transformer")
    bundle = open_bundle(path, weights)
    if "transformer" not in bundle.components:
        raise BundleError(f"{path} holds no transformer but {', '.join(bundle.components)}")
    part = bundle.components["transformer"]
    old = from_config_dict(TransformerConfig, part.config)
    params = resize(part.params, old, experiment.transformer)
    component = Component(dataclasses.asdict(experiment.transformer), params, part.extra)
    return dataclasses.replace(bundle, components={**bundle.components, "transformer": component})
