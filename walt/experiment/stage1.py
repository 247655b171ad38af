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
from walt.training.loop import Initial, train
from walt.training.state import TrainState

MODEL_KEYS = ("autoencoder",)


def train_autoencoder(
    experiment: AutoencoderExperiment,
    workdir: epath.PathLike,
    profile: range = range(0),
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains, calibrates the latents with the averaged weights, and leaves a last checkpoint with both.

    With a frozen encoder the statistics of the bundle it came from stay as they are.
    """
    task, frozen = autoencoder_task(experiment), experiment.loss.freeze_encoder

    def start() -> Initial:
        if experiment.init_from is None:
            return Initial()
        params = initial_weights(experiment.init_from, {"autoencoder": task.model.abstract_params})["autoencoder"]
        extra = open_bundle(experiment.init_from.path).components["autoencoder"].extra if frozen else None
        return Initial({GROUP: params}, extra)

    def calibrate(state: TrainState) -> TrainState:
        # Every process goes through the same clips, whole batches of them, and so finds the same statistics.
        batches = -(-experiment.calibration_clips // experiment.data.batch_size)
        clips = (batch["video"] for batch in islice(ClipLoader(experiment.data).batches(0), batches))
        return dataclasses.replace(state, extra=latent_statistics(task.model, state.averaged_params()[GROUP], clips))

    return train(
        task,
        clip_loader(experiment.data),
        experiment.training,
        workdir,
        resolved_config=to_config_dict(experiment),
        model_keys=MODEL_KEYS,
        evaluators=_heldout_evaluators(task, experiment),
        on_start=start,
        on_finish=None if frozen else calibrate,
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
