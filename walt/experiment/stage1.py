"""Stage 1 put together: clips, the autoencoder's task, and the calibration that ends it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from itertools import islice

import jax
import numpy as np
from etils import epath

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.perceptual import PerceptualDistance
from walt.autoencoder.task import CRITIC, GENERATOR, AutoencoderTask, latent_statistics
from walt.config import ConfigError, to_config_dict
from walt.data.bar import progress_bar
from walt.data.loader import ClipLoader
from walt.data.records import read_manifest
from walt.experiment.config import RUN_KEYS, AutoencoderExperiment, resolved
from walt.experiment.evaluators import evaluators_of_reconstructions
from walt.experiment.hosts import share_of_host
from walt.experiment.provenance import record_environment
from walt.experiment.weights import initial_weights
from walt.generation.sources import open_bundle
from walt.training.folder import latest_step
from walt.training.loop import Initial, train
from walt.training.state import TrainState
from walt.training.task import Evaluator

MODEL_KEYS = (*RUN_KEYS, "autoencoder")


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
    context = experiment.training.mesh.resolve(len(devices or jax.devices()))["context"]
    check_rows(experiment.autoencoder, read_manifest(experiment.data.path).shapes["clip"][1], context)
    initial = Initial()
    if experiment.init_from is not None and latest_step(workdir) is None:  # before anything is written
        params = initial_weights(experiment.init_from, {"autoencoder": task.model.abstract_params})["autoencoder"]
        statistics = open_bundle(experiment.init_from.path).components["autoencoder"].extra
        initial = Initial({GENERATOR: params}, task.extra(statistics) if frozen else None)

    def start() -> Initial:
        record_environment(workdir)
        return initial

    def calibrate(state: TrainState) -> TrainState:
        # Every process goes through the same clips, whole batches of them, and so finds the same statistics.
        present = read_manifest(experiment.data.path).splits[experiment.data.split].count
        batches = -(-min(experiment.calibration_clips, present) // experiment.data.batch_size)
        drawn = islice(ClipLoader(experiment.data).batches(0), batches)
        clips = (batch["video"] for batch in progress_bar(drawn, total=batches, desc="latent statistics", unit="batch"))
        statistics = latent_statistics(task.model, state.averaged_params()[GENERATOR], clips)
        return dataclasses.replace(state, extra={**state.extra, **statistics})

    loader = clip_loader(experiment, workdir=workdir)
    warn_of_range(loader.batch(0)["video"])
    return train(
        task,
        loader,
        experiment.training,
        workdir,
        resolved_config=to_config_dict(resolved(experiment)),
        model_keys=MODEL_KEYS,
        evaluators=_evaluators(task, experiment, workdir),
        on_start=start,
        on_finish=None if frozen else calibrate,
        divides=("context",),
        profile=profile,
        devices=devices,
    )


def check_rows(config: AutoencoderConfig, height: int, devices: int) -> None:
    """Raises `ConfigError` unless the rows of every level, of frames of this height, divide over so many devices."""
    rows = height // config.space_factor
    if rows % devices:
        raise ConfigError(
            f"mesh.context is {devices}, which does not divide the {rows} rows of latents of frames of {height} pixels"
        )


def autoencoder_task(experiment: AutoencoderExperiment) -> AutoencoderTask:
    """The task, for the clips of the experiment's data set. Raises `ConfigError` if they have not the size of `clip_size`."""
    frames, height, width, _ = read_manifest(experiment.data.path).shapes["clip"]
    if experiment.clip_size not in (None, (frames, height, width)):
        wanted = "x".join(map(str, experiment.clip_size or ()))
        raise ConfigError(
            f"this config is for clips of {wanted}, but those in {experiment.data.path} are {frames}x{height}x{width}; prepare such "
            "clips, or say --config.clip_size=None to train on these"
        )
    return task_for(experiment, (frames, height, width))


def task_for(experiment: AutoencoderExperiment, clip_size: tuple[int, int, int]) -> AutoencoderTask:
    """The task for clips of some frames, height and width."""
    chosen = experiment.loss.perceptual
    perceptual = None if chosen is None else PerceptualDistance.load(config=chosen)
    return AutoencoderTask(experiment.autoencoder, experiment.loss, clip_size, perceptual)


def clip_loader(
    experiment: AutoencoderExperiment, split: str | None = None, workdir: epath.PathLike | None = None
) -> ClipLoader:
    """This process's loader of clips (by default of the split to train on), which lists bad records in `workdir`."""
    config = experiment.data if split is None else dataclasses.replace(experiment.data, split=split)
    return ClipLoader(config, **share_of_host(experiment), workdir=workdir)


def _evaluators(task: AutoencoderTask, experiment: AutoencoderExperiment, workdir: epath.PathLike) -> list[Evaluator]:
    """Figures of held-out clips, and a watch on the critic, if there is one."""
    has_heldout = "heldout" in read_manifest(experiment.data.path).splits
    heldout = clip_loader(experiment, "heldout") if has_heldout else None
    evaluators = evaluators_of_reconstructions(task, experiment, heldout, workdir)
    if experiment.loss.adversarial is not None:
        evaluators.append(CriticWatch(experiment.training.log_every))
    return evaluators


@dataclasses.dataclass
class CriticWatch:
    """An `Evaluator` that warns when the critic has been certain of everything for `patience` steps: its gradients have
    vanished, and the autoencoder trains on without a critic."""

    every: int
    patience: int = 200
    name: str = "critic"
    takes_long: bool = False

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        record = jax.device_get(state.extra[CRITIC])
        steps, logits = int(record["saturated_steps"]), record["logits"]
        if steps >= self.patience:
            logging.warning(
                "step %d: the critic has been certain of every clip for %d steps (average logits: %.1f real, %.1f "
                "reconstructed), so it teaches nothing; raise loss.adversarial.r1_weight or lower the learning rate",
                step,
                steps,
                logits["real"],
                logits["fake"],
            )
        return {"saturated_steps": float(steps)}


def warn_of_range(batch: np.ndarray) -> None:
    """Warns of uint8 clips that hold fractions or masks instead of pixels: the autoencoder would learn black."""
    low, high = int(batch.min()), int(batch.max())
    if high <= 1:
        logging.warning(
            "the first batch of clips has pixels from %d to %d; pixels of 0 to 255 are expected, so the data set was "
            "probably written from floats in [0, 1]",
            low,
            high,
        )
