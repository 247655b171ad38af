"""Stage 2 put together: latents with captions, the tokenizer, the diffusion task, sample videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np
from etils import epath

from walt.config import to_config_dict
from walt.data.loader import LatentLoader
from walt.data.records import DatasetError, RecordSource, read_manifest
from walt.diffusion.task import DiffusionTask
from walt.experiment.config import DiffusionExperiment
from walt.experiment.weights import encoder_checksum, initial_weights
from walt.generation.bundle import TOKENIZER, Bundle, Component
from walt.generation.pipeline import Pipeline
from walt.generation.sources import open_bundle
from walt.text.tokenizer import Tokenizer
from walt.training.heldout import HeldOut
from walt.training.loop import train
from walt.training.state import TrainState
from walt.training.task import Evaluator

MODEL_KEYS = ("transformer", "text", "diffusion", "autoencoder_path")


def train_diffusion(
    experiment: DiffusionExperiment,
    workdir: epath.PathLike,
    profile: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains the tokenizer (once), then text encoder and transformer together."""
    autoencoder = open_bundle(experiment.autoencoder_path)
    _check_latents(experiment.data.path, autoencoder, experiment.autoencoder_path)
    tokenizer = workdir_tokenizer(experiment, workdir)
    # The captions may give fewer pieces than asked for; what is stored is what the model has.
    experiment = dataclasses.replace(
        experiment, text=dataclasses.replace(experiment.text, vocab_size=tokenizer.vocab_size)
    )
    task = diffusion_task(experiment)
    params = None
    if experiment.init_from is not None:
        fresh, _ = task.denoiser.init(jax.random.key(experiment.training.seed))
        params = {"model": initial_weights(experiment.init_from, fresh)}
    return train(
        task,
        latent_loader(experiment, tokenizer, "train"),
        experiment.training,
        workdir,
        resolved_config=to_config_dict(experiment),
        model_keys=MODEL_KEYS,
        evaluators=_evaluators(experiment, task, tokenizer, autoencoder),
        initial_params=params,
        profile=profile,
        devices=devices,
    )


def _check_latents(path: str, autoencoder: Bundle, autoencoder_path: str) -> None:
    """Raises `DatasetError` unless the latents come from exactly these weights and statistics."""
    stored = read_manifest(path).extra.get("autoencoder")
    present = encoder_checksum(autoencoder.components["autoencoder"])
    if stored != present:
        raise DatasetError(
            f"{path} was encoded by an autoencoder with checksum {str(stored)[:12]}, but {autoencoder_path} has {present[:12]}; "
            "encode the clips again with `walt prepare latents`"
        )


def workdir_tokenizer(experiment: DiffusionExperiment, workdir: epath.PathLike) -> Tokenizer:
    """The tokenizer of a workdir; trained on the captions of the training split at the first start."""
    file = epath.Path(workdir) / TOKENIZER
    if not file.exists() and jax.process_index() == 0:
        captions = sorted({caption for record in _records(experiment) for caption in record["captions"]})
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{TOKENIZER}.new")
        fresh.write_bytes(Tokenizer.train(captions, experiment.text.vocab_size).model_bytes)
        fresh.rename(file)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("tokenizer")
    return Tokenizer(file.read_bytes())


def _records(experiment: DiffusionExperiment) -> Iterator[dict[str, Any]]:
    source = RecordSource(experiment.data.path, "train")
    return (source[index] for index in range(len(source)))


def diffusion_task(experiment: DiffusionExperiment) -> DiffusionTask:
    """The task of an experiment."""
    return DiffusionTask(experiment.transformer, experiment.text, experiment.diffusion)


def latent_loader(experiment: DiffusionExperiment, tokenizer: Tokenizer, split: str) -> LatentLoader:
    """This process's loader of latents with tokenized captions."""
    config = dataclasses.replace(experiment.data, split=split)
    return LatentLoader(config, tokenizer, process_index=jax.process_index(), process_count=jax.process_count())


def _evaluators(
    experiment: DiffusionExperiment, task: DiffusionTask, tokenizer: Tokenizer, autoencoder: Bundle
) -> list[Evaluator]:
    evaluators: list[Evaluator] = []
    has_heldout = "heldout" in read_manifest(experiment.data.path).splits
    if has_heldout:
        evaluators.append(HeldOut(task, latent_loader(experiment, tokenizer, "heldout"), experiment.heldout_every))
    if experiment.samples_every:
        prompts = experiment.sample_prompts or _first_captions(experiment, "heldout" if has_heldout else "train")
        evaluators.append(SampleVideos(experiment, tokenizer, autoencoder, tuple(prompts), experiment.samples_every))
    return evaluators


def _first_captions(experiment: DiffusionExperiment, split: str, number: int = 8) -> list[str]:
    """One caption of each of the first `number` labels."""
    source = RecordSource(experiment.data.path, split)
    by_label: dict[str, str] = {}
    for record in islice((source[index] for index in range(len(source))), 4096):
        by_label.setdefault(record["label"], record["captions"][0])
    return list(by_label.values())[:number]


@dataclasses.dataclass
class SampleVideos:
    """An `Evaluator` that samples a few prompts with the averaged weights, for TensorBoard."""

    experiment: DiffusionExperiment
    tokenizer: Tokenizer
    autoencoder: Bundle
    prompts: Sequence[str]
    every: int
    name: str = "samples"

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        params = jax.tree.map(np.asarray, state.averaged_params()["model"])
        return {"videos": Pipeline(self._bundle(params)).generate(list(self.prompts))}

    def _bundle(self, params: dict) -> Bundle:
        experiment = self.experiment
        return Bundle(
            {
                **self.autoencoder.components,
                "transformer": Component(dataclasses.asdict(experiment.transformer), params["transformer"]),
                "text_encoder": Component(dataclasses.asdict(experiment.text), params["text_encoder"]),
            },
            tokenizer=self.tokenizer.model_bytes,
            diffusion=dataclasses.asdict(experiment.diffusion),
            sampler=dataclasses.asdict(experiment.sampler),
        )
