"""The composition root: from a config to models, task, data, evaluators and a run. Only this room knows all the others."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from walt.experiment.config import STAGES, AutoencoderExperiment, DiffusionExperiment, ExperimentConfig, parse
from walt.generation.init_from import InitRules
from walt.training.state import TrainState

__all__ = ["STAGES", "AutoencoderExperiment", "DiffusionExperiment", "ExperimentConfig", "InitRules", "parse", "train"]


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    profile: range = range(0),
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Runs the experiment that `config` describes; goes on from the latest checkpoint in `workdir`.

    `profile` holds steps to trace; `devices` those to train on, all of them by default.
    """
    experiment = parse(config)
    if isinstance(experiment, AutoencoderExperiment):
        from walt.experiment.stage1 import train_autoencoder

        return train_autoencoder(experiment, workdir, profile, devices)
    from walt.experiment.stage2 import train_diffusion

    return train_diffusion(experiment, workdir, profile, devices)
