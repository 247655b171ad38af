"""Stage 2 put together: latents with captions, the tokenizer, the diffusion task, sample videos."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from walt.config import ConfigError, from_config_dict, to_config_dict
from walt.data.faults import FaultLog, usable
from walt.data.latents import Latent, LatentsFormat, described
from walt.data.loader import LatentLoader
from walt.data.records import DatasetError, RecordSource, read_manifest
from walt.diffusion.task import TEXT_ENCODER, DiffusionTask
from walt.experiment.config import RUN_KEYS, DiffusionExperiment, resolved
from walt.experiment.hosts import share_of_host
from walt.experiment.provenance import record_environment
from walt.experiment.weights import check_same_tokens, initial_weights
from walt.generation.bundle import TOKENIZER, Bundle, BundleError, Component, encoder_checksum, text_checksum
from walt.generation.pipeline import Pipeline
from walt.generation.sources import open_autoencoder, open_text_encoder, whole_path
from walt.parallel.mesh import mesh_of
from walt.text.config import TextEncoderConfig
from walt.text.tokenizer import Tokenizer, WordPiece, read_tokenizer
from walt.training.checkpoint import check_config
from walt.training.folder import latest_step
from walt.training.heldout import HeldOut
from walt.training.loop import Initial, train
from walt.training.state import TrainState
from walt.training.task import Evaluator
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

MODEL_KEYS = (
    *RUN_KEYS,
    "transformer",
    "text",
    "diffusion",
    "autoencoder_checksum",
    "text_encoder_checksum",
    "text_source",
)


def train_diffusion(
    experiment: DiffusionExperiment,
    workdir: epath.PathLike,
    profile: range = range(0),
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Trains the tokenizer (once), then text encoder and transformer together."""
    with naming("autoencoder_path"):
        autoencoder = open_autoencoder(experiment.autoencoder_path)
    with naming("text_encoder_path"):
        frozen = open_text_encoder(experiment.text_encoder_path) if experiment.text_encoder_path else None
    experiment = _with_classes(resolved(_with_autoencoder(_with_encoder(experiment, frozen), autoencoder)))
    begun = latest_step(workdir) is not None
    if begun:  # a run of another kind has no tokenizer
        check_config(workdir, to_config_dict(experiment), MODEL_KEYS)
    _check_latents(experiment)
    check_mesh(experiment.transformer, experiment.training.mesh.resolve(len(devices or jax.devices())))
    tokenizer = workdir_tokenizer(experiment, workdir, frozen)
    task = diffusion_task(experiment)
    weights = None
    if experiment.init_from is not None and not begun:  # before anything is written
        if tokenizer is not None and frozen is None:
            check_same_tokens(experiment.init_from, tokenizer)
        weights = initial_weights(experiment.init_from, task.denoiser.abstract_params, experiment.transformer)

    def start() -> Initial:
        record_environment(workdir)
        if tokenizer is not None and jax.process_index() == 0:
            file = epath.Path(workdir) / TOKENIZER
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tokenizer.model_bytes)
        extra = None
        if frozen is not None and experiment.text_source == "frozen":
            extra = {TEXT_ENCODER: frozen.components["text_encoder"].params}
        return Initial({} if weights is None else {"model": weights}, extra)

    return train(
        task,
        latent_loader(experiment, tokenizer, experiment.data.split, workdir),
        experiment.training,
        workdir,
        resolved_config=to_config_dict(experiment),
        model_keys=MODEL_KEYS,
        evaluators=_evaluators(experiment, task, tokenizer, autoencoder, frozen),
        on_start=start,
        axes=PARAMETER_AXES,
        divides=("context", "tensor"),
        profile=profile,
        devices=devices,
    )


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """A `BundleError` that comes up says which setting names what is not there."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"--config.{setting}: {error}") from error


def _check_latents(experiment: DiffusionExperiment) -> None:
    """Raises `ConfigError` if the data's latents are of another shape than the transformer's; says where embedded captions go unused."""
    manifest, transformer = read_manifest(experiment.data.path), experiment.transformer
    *shape, channels = manifest.shapes["video"]
    if (*transformer.latent_shape, transformer.out_channels) != (*shape, channels):
        sizes = ",".join(map(str, shape))
        raise ConfigError(
            f"the latents in {experiment.data.path} are of {'x'.join(map(str, shape))} with {channels} channels, but the model is for "
            f"{'x'.join(map(str, transformer.latent_shape))} with {transformer.out_channels}: take other data, or set "
            f"--config.transformer.latent_shape={sizes} and in_channels and out_channels"
        )
    if "text" in manifest.shapes and experiment.text is not None and experiment.text_encoder_path is None:
        tqdm.write(
            f"note: the captions in {experiment.data.path} are embedded already, but a text encoder of the run's own is trained on them: name theirs "
            "with --config.text_encoder_path to use what is there"
        )


def _with_autoencoder(experiment: DiffusionExperiment, autoencoder: Bundle) -> DiffusionExperiment:
    """The experiment with the autoencoder's checksum and whole path, so that the run can be used from anywhere.

    Raises `DatasetError` unless the latents come from exactly these weights and statistics.
    """
    path, data = experiment.autoencoder_path, experiment.data.path
    manifest = read_manifest(data)
    if "clip" in manifest.shapes:
        raise DatasetError(
            f"{data} holds clips, not latents; make them with `walt prepare latents --input={data} --autoencoder={path} --output=…`"
        )
    stored = manifest.extra.get("autoencoder")
    present = encoder_checksum(autoencoder.components["autoencoder"])
    if stored != present:
        raise DatasetError(
            f"{data} was encoded by an autoencoder with checksum {str(stored)[:12]}, but {path} has {present[:12]}; "
            "name theirs with --config.autoencoder_path, or encode the clips again with `walt prepare latents`"
        )
    return dataclasses.replace(experiment, autoencoder_path=whole_path(path), autoencoder_checksum=present)


def _with_encoder(experiment: DiffusionExperiment, frozen: Bundle | None) -> DiffusionExperiment:
    """The experiment with the shape of the frozen text encoder, if there is one, in place of that of a trained one.

    Raises `DatasetError` if the data hold captions that another encoder embedded, `ConfigError` if it gave them another length.
    """
    if frozen is None:
        return experiment
    manifest, checksum = read_manifest(experiment.data.path), text_checksum(frozen)
    if "text" in manifest.shapes:
        if manifest.extra.get("text_encoder") != checksum:
            raise DatasetError(
                f"the captions in {experiment.data.path} were embedded by another encoder than {experiment.text_encoder_path}; embed them "
                "again with `walt prepare text`"
            )
        length = manifest.shapes["text"][0]
        if length != experiment.diffusion.caption_length:
            raise ConfigError(
                f"diffusion.caption_length is {experiment.diffusion.caption_length}, but the captions in {experiment.data.path} were embedded "
                f"with {length} tokens; set it, and data.caption_length, to that"
            )
    text = from_config_dict(TextEncoderConfig, frozen.components["text_encoder"].config)
    path = experiment.text_encoder_path
    return dataclasses.replace(
        experiment,
        text=text,
        transformer=dataclasses.replace(experiment.transformer, text_width=text.width),
        text_encoder_path=path and whole_path(path),
        text_encoder_checksum=checksum,
        text_source="prepared" if "text" in manifest.shapes else "frozen",
    )


def _with_classes(experiment: DiffusionExperiment) -> DiffusionExperiment:
    """The experiment with the names of its classes, which are the labels of its data.

    Raises `ConfigError` unless there are as many as the transformer has classes.
    """
    count = experiment.transformer.num_classes
    if count is None:
        return experiment
    stored = read_manifest(experiment.data.path).extra.get("labels")  # latents of older versions do not list them
    labels = tuple(sorted(stored or {label for _, label in _descriptions(experiment)}))
    if len(labels) != count or "" in labels:
        found = f"{len(labels)} labels: {', '.join(map(repr, labels[:8]))}{', …' if len(labels) > 8 else ''}"
        raise ConfigError(f"transformer.num_classes is {count}, but {experiment.data.path} has {found}")
    return dataclasses.replace(experiment, diffusion=dataclasses.replace(experiment.diffusion, class_names=labels))


def workdir_tokenizer(
    experiment: DiffusionExperiment, workdir: epath.PathLike, frozen: Bundle | None = None
) -> Tokenizer | WordPiece | None:
    """The tokenizer of a run that has begun; for a new one it is that of the frozen text encoder, or is made of the captions of
    the training split. None for a model that reads no text.

    Making it gives the same pieces every time, so every process of a job may do so. Raises `ConfigError` if the run has
    lost its own.
    """
    if experiment.text is None:
        return None
    if latest_step(workdir) is not None:
        file = epath.Path(workdir) / TOKENIZER
        if not file.exists():
            raise ConfigError(
                f"{file} is missing, and the run in {workdir} cannot go on without it: put it back, or choose another workdir"
            )
        return read_tokenizer(file.read_bytes())
    if frozen is not None and frozen.tokenizer is not None:
        return read_tokenizer(frozen.tokenizer)
    captions = sorted({caption for captions, _ in _descriptions(experiment) for caption in captions})
    return Tokenizer.train(captions, experiment.text.vocab_size)


def _descriptions(experiment: DiffusionExperiment) -> Iterator[tuple[list[str], str]]:
    """Captions and label of every record to train on that can be read."""
    source = RecordSource(experiment.data.path, experiment.data.split)
    return usable(range(len(source)), lambda index: described(source[index]), _fault_log(experiment))


def _fault_log(experiment: DiffusionExperiment) -> FaultLog:
    return FaultLog(experiment.data.path, experiment.data.max_bad_records)


def diffusion_task(experiment: DiffusionExperiment) -> DiffusionTask:
    """The task of an experiment."""
    return DiffusionTask(
        experiment.transformer, experiment.text, experiment.diffusion, text_source=experiment.text_source
    )


def latent_loader(
    experiment: DiffusionExperiment,
    tokenizer: Tokenizer | WordPiece | None,
    split: str,
    workdir: epath.PathLike | None = None,
) -> LatentLoader:
    """This process's loader of latents with tokenized captions, classes, or both; it lists bad records in `workdir`."""
    config, classes = dataclasses.replace(experiment.data, split=split), experiment.diffusion.class_names
    if experiment.text_source == "prepared":
        tokenizer = None  # the captions of the data are embedded already
    return LatentLoader(
        config,
        tokenizer,
        classes,
        low_resolution=experiment.transformer.low_resolution is not None,
        **share_of_host(experiment),
        workdir=workdir,
    )


def _evaluators(
    experiment: DiffusionExperiment,
    task: DiffusionTask,
    tokenizer: Tokenizer | WordPiece | None,
    autoencoder: Bundle,
    frozen: Bundle | None,
) -> list[Evaluator]:
    evaluators: list[Evaluator] = []
    has_heldout = "heldout" in read_manifest(experiment.data.path).splits
    if has_heldout:
        evaluators.append(HeldOut(task, latent_loader(experiment, tokenizer, "heldout"), experiment.heldout_every))
    if experiment.samples_every:
        examples = _examples(experiment, "heldout" if has_heldout else experiment.data.split)
        low = None
        if experiment.transformer.low_resolution is not None:
            low = np.stack([example.low_resolution for example in examples])
        names = [example.label if tokenizer is None else example.captions[0] for example in examples]
        prompts = tuple(experiment.sample_prompts or names)
        every = experiment.samples_every
        evaluators.append(SampleVideos(experiment, tokenizer, autoencoder, frozen, prompts, every, low))
    return evaluators


def _examples(experiment: DiffusionExperiment, split: str, number: int = 8) -> list[Latent]:
    """Examples by label and first caption: the first of each label, then further ones, `number` in all if there are as many."""
    source = RecordSource(experiment.data.path, split)
    low_resolution = experiment.transformer.low_resolution is not None
    form = LatentsFormat(source.manifest.shapes, low_resolution, text_shape=None, classes={})
    first: dict[tuple[str, str], Latent] = {}
    others: dict[tuple[str, str], Latent] = {}
    labels: set[str] = set()
    indices = range(min(512, len(source)))
    for example in usable(indices, lambda index: form.decode(source[index]), _fault_log(experiment)):
        label, caption = example.label, example.captions[0]
        kind = others if label in labels else first
        if len(kind) < number:
            kind.setdefault((label, caption), example)
        labels.add(label)
    others = {key: example for key, example in others.items() if key not in first}
    return list({**first, **others}.values())[:number]


@dataclasses.dataclass
class SampleVideos:
    """An `Evaluator` that samples a few prompts with the averaged weights where they lie, on the mesh of the run, for TensorBoard; for a
    super-resolution model with the latents of the video of each that it is to make larger."""

    experiment: DiffusionExperiment
    tokenizer: Tokenizer | WordPiece | None
    autoencoder: Bundle
    frozen: Bundle | None
    prompts: Sequence[str]
    every: int
    low_latents: np.ndarray | None = None
    name: str = "samples"

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        mesh = mesh_of(state.step)
        pipeline = Pipeline(self._bundle(state.averaged_params()["model"]), mesh)
        low = None if self.low_latents is None else Pipeline(self.autoencoder, mesh).decode(self.low_latents)
        return {"videos": pipeline.generate(list(self.prompts), low_resolution=low)}

    def _bundle(self, params: dict) -> Bundle:
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
