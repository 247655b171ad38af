"""Stage 2 put together: latents with captions, the tokenizer, the diffusion task, sample videos."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
from etils import epath
from tqdm import tqdm

from walt.config import ConfigError, from_config_dict, to_config_dict
from walt.data.faults import FaultLog, usable
from walt.data.latents import described
from walt.data.loader import LatentLoader
from walt.data.records import DatasetError, RecordSource, read_manifest
from walt.diffusion.task import TEXT_ENCODER, DiffusionTask
from walt.experiment.config import RUN_KEYS, DiffusionExperiment, resolved
from walt.experiment.evaluators import Parts, evaluators_of_samples
from walt.experiment.hosts import share_of_host
from walt.experiment.provenance import record_environment
from walt.experiment.weights import check_same_tokens, initial_weights
from walt.generation.bundle import TOKENIZER, Bundle, BundleError, encoder_checksum, text_checksum
from walt.generation.sources import open_autoencoder, open_text_encoder, whole_path
from walt.text.config import TextEncoderConfig
from walt.text.tokenizer import Tokenizer, WordPiece, read_tokenizer
from walt.training.checks import check_config
from walt.training.folder import latest_step
from walt.training.loop import Initial, train
from walt.training.state import TrainState
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
    heldout = latent_loader(experiment, tokenizer, "heldout") if _has_heldout(experiment) else None
    parts = Parts(experiment, tokenizer, autoencoder, frozen)
    evaluators = evaluators_of_samples(parts, task, heldout, _fault_log(experiment), workdir)
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
        evaluators=evaluators,
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


def _has_heldout(experiment: DiffusionExperiment) -> bool:
    return "heldout" in read_manifest(experiment.data.path).splits


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
