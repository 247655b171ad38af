"""Stage 1 put together: clips, the autoencoder's task, and the calibration that ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice

import jax
from etils import epath

from walt.autoencoder.task import GROUP, AutoencoderTask, latent_statistics
from walt.config import to_config_dict
from walt.data.loader import ClipLoader, LoaderConfig
from walt.data.records import read_manifest
from walt.experiment.config import AutoencoderExperiment
from walt.experiment.weights import initial_weights
from walt.generation.sources import open_bundle
from walt.training.heldout import HeldOut
from walt.training.loop import train
from walt.training.state import TrainState

MODEL_KEYS = ("autoencoder",)


def train_autoencoder(
    experiment: AutoencoderExperiment,
    workdir: epath.PathLike,
    profile: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains, calibrates the latents with the averaged weights, and leaves a last checkpoint with both.

    With a frozen encoder the statistics of the bundle it came from stay as they are.
    """
    loader, task = clip_loader(experiment.data), autoencoder_task(experiment)

    def calibrate(state: TrainState) -> TrainState:
        batches = -(-experiment.calibration_clips // experiment.data.batch_size)
        clips = (batch["video"] for batch in islice(loader.batches(0), batches))
        return dataclasses.replace(state, extra=latent_statistics(task.model, state.averaged_params()[GROUP], clips))

    params = extra = None
    if experiment.init_from is not None:
        fresh, _ = task.model.init(jax.random.key(experiment.training.seed))
        params = {GROUP: initial_weights(experiment.init_from, {"autoencoder": fresh})["autoencoder"]}
        extra = open_bundle(experiment.init_from.path).components["autoencoder"].extra
    return train(
        task,
        loader,
        experiment.training,
        workdir,
        resolved_config=to_config_dict(experiment),
        model_keys=MODEL_KEYS,
        evaluators=_heldout_evaluators(task, experiment),
        initial_params=params,
        initial_extra=extra,
        on_finish=None if experiment.loss.freeze_encoder else calibrate,
        profile=profile,
        devices=devices,
    )


def autoencoder_task(experiment: AutoencoderExperiment) -> AutoencoderTask:
    """The task, for the clips of the experiment's data set."""
    frames, height, width, _ = clip_loader(experiment.data).manifest.shapes["clip"]
    return AutoencoderTask(experiment.autoencoder, experiment.loss, (frames, height, width))


def clip_loader(config: LoaderConfig) -> ClipLoader:
    """This process's loader of clips."""
    return ClipLoader(config, process_index=jax.process_index(), process_count=jax.process_count())


def _heldout_evaluators(task: AutoencoderTask, experiment: AutoencoderExperiment) -> list[HeldOut]:
    """Reconstruction of held-out clips, if the data set has any."""
    if "heldout" not in read_manifest(experiment.data.path).splits:
        return []
    heldout = clip_loader(dataclasses.replace(experiment.data, split="heldout"))
    return [HeldOut(task, heldout, experiment.heldout_every, num_batches=16)]
