"""Where models come from: a bundle's folder, a training run's work directory, or a name that ships with the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from etils import epath
from ml_collections import ConfigDict

from walt.config import to_json
from walt.generation.bundle import (
    TOKENIZER,
    Bundle,
    BundleError,
    Component,
    Tree,
    encoder_checksum,
    is_bundle,
    read_bundle,
    text_checksum,
)

SHIPPED = Path(__file__).resolve().parents[1] / "_bundles"
Weights = Literal["ema", "raw"]


def shipped_bundles() -> list[str]:
    """Names that `open_bundle` knows without a path."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if is_bundle(folder)) if SHIPPED.is_dir() else []


def open_bundle(path: epath.PathLike, weights: Weights = "ema") -> Bundle:
    """The model at `path`: a shipped name, a bundle (local or `gs://`), or the latest checkpoint of a work directory.

    A shipped name wins over a folder of that name; write `./mini` for the folder. `weights` chooses, for a work
    directory, between averaged and raw weights.

    Raises:
      BundleError: there is none, or it is incomplete.
    """
    if str(path) in shipped_bundles():
        return read_bundle(SHIPPED / str(path))
    folder = epath.Path(path)
    if is_bundle(folder):
        return read_bundle(folder)
    if (folder / "checkpoints").is_dir():
        return bundle_of_workdir(folder, weights)
    names = f"; shipped models: {', '.join(shipped_bundles())}" if shipped_bundles() else ""
    problem = (
        "holds neither walt.json (a bundle) nor checkpoints (a work directory)" if folder.exists() else "does not exist"
    )
    raise BundleError(f"{path} {problem}{names}")


def open_autoencoder(path: epath.PathLike, weights: Weights = "ema") -> Bundle:
    """`open_bundle` where the autoencoder is what counts; `BundleError` if there is none."""
    bundle = open_bundle(path, weights)
    if "autoencoder" not in bundle.components:
        raise BundleError(f"{path} holds no autoencoder but {', '.join(bundle.components)}")
    return bundle


def open_text_encoder(path: epath.PathLike) -> Bundle:
    """`open_bundle` for who needs a text encoder; raises `BundleError` if there is none in it, or no tokenizer."""
    bundle = open_bundle(path)
    if "text_encoder" not in bundle.components or bundle.tokenizer is None:
        raise BundleError(f"{path} holds no text encoder with its tokenizer but {', '.join(bundle.components)}")
    return bundle


def whole_path(path: epath.PathLike) -> str:
    """The path under which `open_bundle` finds the same model from any folder."""
    return str(path) if str(path) in shipped_bundles() else str(epath.Path(path).resolve())


def bundle_of_workdir(workdir: epath.PathLike, weights: Weights = "ema") -> Bundle:
    """The parts of the latest checkpoint; averaged weights if asked for and there are any.

    Raises:
      BundleError: a part that the run's config names is not to be found.
      walt.training.checkpoint.CheckpointError: there is no whole checkpoint.
    """
    # Imports Orbax, which takes seconds that a bundle need not wait for.
    from walt.autoencoder.task import latent_statistics_of
    from walt.training.checkpoint import restore_parts, stored_clock

    params, ema, extra, config, step = restore_parts(workdir)
    chosen = {**params, **ema} if weights == "ema" else params
    card = {
        "step": step,
        "weights": "ema" if weights == "ema" and ema else "raw",
        "finished": stored_clock(workdir, step).finished,
    }
    if config.get("data_fps"):
        card["fps"] = config.data_fps
    if "generator" in chosen:
        autoencoder = Component(_plain(config.autoencoder), chosen["generator"], latent_statistics_of(extra))
        return Bundle({"autoencoder": autoencoder}, card=card)
    if "model" not in chosen:
        raise BundleError(
            f"{workdir} holds parameters of {', '.join(chosen)}, and neither an autoencoder's nor a denoiser's"
        )
    return _denoiser_bundle(epath.Path(workdir), config, chosen["model"], extra, card)


def _denoiser_bundle(
    workdir: epath.Path, config: ConfigDict, params: Tree, extra: Tree, card: dict[str, Any]
) -> Bundle:
    first_stage = _autoencoder_of(workdir, str(config.autoencoder_path), config.get("autoencoder_checksum"))
    configs = {"transformer": config.transformer, "text_encoder": config.text}
    weights = {**extra, **params}  # a frozen text encoder is no parameter of the run
    components = {name: Component(_plain(configs[name]), weights[name]) for name in configs if name in weights}
    if config.get("text_source") == "prepared":
        components["text_encoder"] = _text_encoder_of(workdir, config).components["text_encoder"]
    tokenizer = None
    if "text_encoder" in components:
        try:
            tokenizer = (workdir / TOKENIZER).read_bytes()
        except OSError as error:
            raise BundleError(
                f"{workdir / TOKENIZER} cannot be read, and the run's text encoder needs it: {error}"
            ) from error
    return Bundle(
        {"autoencoder": first_stage.components["autoencoder"], **components},
        tokenizer=tokenizer,
        diffusion=_plain(config.diffusion),
        sampler=_plain(config.sampler),
        licences=first_stage.licences,
        card=card,
    )


def _text_encoder_of(workdir: epath.Path, config: ConfigDict) -> Bundle:
    """The encoder that embedded the captions of a run's data, which the run itself does not hold."""
    path = str(config.text_encoder_path)
    try:
        bundle = open_text_encoder(path)
    except BundleError as error:
        raise BundleError(f"the text encoder of {workdir}: {error}") from error
    if text_checksum(bundle) != config.text_encoder_checksum:
        raise BundleError(
            f"the text encoder of {workdir}: {path} has changed since the run began, so it no longer fits"
        )
    return bundle


def _autoencoder_of(workdir: epath.Path, path: str, checksum: str | None) -> Bundle:
    try:
        bundle = open_autoencoder(path)
    except BundleError as error:
        raise BundleError(f"the autoencoder of {workdir}: {error}") from error
    found = encoder_checksum(bundle.components["autoencoder"])
    if checksum and checksum != found:
        raise BundleError(
            f"the autoencoder of {workdir}: {path} has changed since the run began (its encoder and statistics had the "
            f"checksum {checksum[:12]}, now {found[:12]}), so it no longer decodes what the run's transformer makes"
        )
    return bundle


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(to_json(config))
