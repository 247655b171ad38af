"""What watches a run while it trains: sample videos, distances of samples to real clips, figures of reconstructions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.task import GENERATOR, AutoencoderTask, latent_statistics_of
from walt.data.faults import FaultLog, usable
from walt.data.latents import Latent, LatentsFormat
from walt.data.records import RecordSource
from walt.diffusion.task import DiffusionTask
from walt.evaluation.config import SampleEvaluation
from walt.evaluation.distance import read_real
from walt.evaluation.footage import Footage, open_footage
from walt.evaluation.measure import RealStatistics
from walt.evaluation.samples import SampleFn, prompts_of
from walt.evaluation.watching import Reconstruct, ReconstructionFigures, SampleDistance
from walt.experiment.config import AutoencoderExperiment, DiffusionExperiment
from walt.experiment.measuring import clips_of, sample_fn, told_of_sampler
from walt.generation.bundle import Bundle, Component
from walt.generation.parts import config_of
from walt.generation.pipeline import Pipeline
from walt.parallel.mesh import mesh_of
from walt.text.tokenizer import Tokenizer, WordPiece
from walt.training.heldout import HeldOut
from walt.training.state import TrainState
from walt.training.task import Evaluator, Loader, Tree


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a model in training is made of, besides the weights that are trained."""

    experiment: DiffusionExperiment
    tokenizer: Tokenizer | WordPiece | None
    autoencoder: Bundle
    frozen: Bundle | None

    def pipeline(self, state: TrainState) -> Pipeline:
        """Of the averaged weights where they lie, on the mesh of the run."""
        return Pipeline(self._bundle(state.averaged_params()["model"]), mesh_of(state.step))

    def _bundle(self, params: Tree) -> Bundle:
        experiment = self.experiment
        components = {
            **self.autoencoder.components,
            "transformer": Component(dataclasses.asdict(experiment.transformer), params["transformer"]),
        }
        if self.frozen is not None:
            components["text_encoder"] = self.frozen.components["text_encoder"]
        elif experiment.text is not None:
            components["text_encoder"] = Component(dataclasses.asdict(experiment.text), params["text_encoder"])
        return Bundle(
            components,
            tokenizer=None if self.tokenizer is None else self.tokenizer.model_bytes,
            diffusion=dataclasses.asdict(experiment.diffusion),
            sampler=dataclasses.asdict(experiment.sampler),
        )


def evaluators_of_samples(
    parts: Parts, task: DiffusionTask, heldout: Loader | None, log: FaultLog, workdir: epath.PathLike
) -> list[Evaluator]:
    """Of stage 2, in the order in which they run: the loss on held-out data if there are any, sample videos, distances.

    Raises `ConfigError` and `EvaluationError` for distances that cannot be measured.
    """
    experiment, evaluators = parts.experiment, list[Evaluator]()
    split = experiment.data.split if heldout is None else "heldout"
    if heldout is not None:
        evaluators.append(HeldOut(task, heldout, experiment.heldout_every))
    if experiment.samples_every:
        evaluators.append(_sample_videos(parts, split, log))
    evaluators += [_distance(parts, name, config, split, workdir) for name, config in experiment.evaluators.items()]
    return evaluators


@dataclasses.dataclass
class SampleVideos:
    """An `Evaluator` that samples a few prompts for TensorBoard; of a super-resolution model with the latents of the video of each that it is
    to make larger."""

    parts: Parts
    prompts: Sequence[str]
    every: int
    low_latents: np.ndarray | None = None
    name: str = "samples"
    takes_long: bool = True

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        low = None
        if self.low_latents is not None:
            low = Pipeline(self.parts.autoencoder, mesh_of(state.step)).decode(self.low_latents)
        return {"videos": self.parts.pipeline(state).generate(list(self.prompts), low_resolution=low)}


def _sample_videos(parts: Parts, split: str, log: FaultLog) -> SampleVideos:
    experiment = parts.experiment
    examples = _examples(experiment, split, log)
    low = None
    if experiment.transformer.low_resolution is not None:
        low = np.stack([example.low_resolution for example in examples])
    names = [example.label if parts.tokenizer is None else example.captions[0] for example in examples]
    return SampleVideos(parts, tuple(experiment.sample_prompts or names), experiment.samples_every, low)


def _examples(experiment: DiffusionExperiment, split: str, log: FaultLog, number: int = 8) -> list[Latent]:
    """Examples by label and first caption: the first of each label, then further ones, `number` in all if there are as many."""
    source = RecordSource(experiment.data.path, split)
    low_resolution = experiment.transformer.low_resolution is not None
    form = LatentsFormat(source.manifest.shapes, low_resolution, text_shape=None, classes={})
    first: dict[tuple[str, str], Latent] = {}
    others: dict[tuple[str, str], Latent] = {}
    labels: set[str] = set()
    indices = range(min(512, len(source)))
    for example in usable(indices, lambda index: form.decode(source[index]), log):
        label, caption = example.label, example.captions[0]
        kind = others if label in labels else first
        if len(kind) < number:
            kind.setdefault((label, caption), example)
        labels.add(label)
    others = {key: example for key, example in others.items() if key not in first}
    return list({**first, **others}.values())[:number]


def _distance(parts: Parts, name: str, config: SampleEvaluation, split: str, workdir: epath.PathLike) -> SampleDistance:
    """An entry of the config's `evaluators`."""
    experiment = parts.experiment
    sampling = config.sampling
    classes = experiment.diffusion.class_names
    prompts = prompts_of(open_footage(experiment.data.path, split), config.samples, classes=classes)

    def sampler(state: TrainState) -> SampleFn:
        return sample_fn(parts.pipeline(state), prompts, sampling, config.batch_size)

    told = told_of_sampler(sampling.of(experiment.sampler), sampling.seed)
    autoencoder = config_of(AutoencoderConfig, parts.autoencoder.components["autoencoder"].config, "autoencoder")
    size = autoencoder.clip_size(*experiment.transformer.latent_shape)
    return SampleDistance(name, config, _real_clips(config, experiment), prompts, sampler, size, told, workdir)


def _real_clips(config: SampleEvaluation, experiment: DiffusionExperiment) -> Footage | RealStatistics:
    if config.real is not None and config.real.endswith(".npz"):
        return read_real(Path(config.real))
    return open_footage(config.real or clips_of(experiment.data.path), config.split)


def evaluators_of_reconstructions(
    task: AutoencoderTask, experiment: AutoencoderExperiment, heldout: Loader | None, workdir: epath.PathLike
) -> list[Evaluator]:
    """Of stage 1: the losses on held-out data if there are any, and figures of reconstructions."""
    evaluators: list[Evaluator] = []
    if heldout is not None:
        evaluators.append(HeldOut(task, heldout, experiment.heldout_every, num_batches=16))

    def reconstructor(state: TrainState) -> Reconstruct:
        weights = state.averaged_params()[GENERATOR]
        part = Component(dataclasses.asdict(experiment.autoencoder), weights, latent_statistics_of(state.extra))
        return Pipeline(Bundle({"autoencoder": part}), mesh_of(state.step)).reconstruct

    for name, config in experiment.evaluators.items():
        clips = open_footage(experiment.data.path, config.split)
        evaluators.append(ReconstructionFigures(name, config, clips, reconstructor, workdir))
    return evaluators
