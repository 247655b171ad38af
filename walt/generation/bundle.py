"""A bundle: a model as a self-contained, relocatable folder.

    walt.json                  format, configs, file names and SHA-256 sums, licences, card
    autoencoder.safetensors    one file per component: "params/..." and "extra/..." (latent statistics)
    transformer.safetensors    learned null text included
    text_encoder.safetensors
    tokenizer.model            SentencePiece

Every component but one may be missing: a stage-1 export holds the autoencoder alone. Weights are stored as float32 or
float16 and always load as float32; nothing in a bundle is code. Whatever format 1 was at its first release must load
for ever: add optional keys, never change the meaning of one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from walt.untrusted import field, parse_json, typed

FORMAT = 1
INDEX = "walt.json"
TOKENIZER = "tokenizer.model"
COMPONENTS = ("autoencoder", "transformer", "text_encoder")
RAW_LATENTS = "raw_latents"  # key of a card: latents are not normalised, on purpose
Tree = dict[str, Any]


class BundleError(ValueError):
    """A bundle that cannot be read or written; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Component:
    """A model: its config as plain JSON values, its parameters and its other variables (nested dicts of arrays)."""

    config: Mapping[str, Any]
    params: Tree
    extra: Tree = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What a bundle's folder holds.

    Attributes:
      components: some of `autoencoder`, `transformer`, `text_encoder`.
      tokenizer: bytes of a SentencePiece model, or None without text.
      diffusion, sampler: configs, as plain JSON values; None without a transformer.
      licences: one line per source of data or weights.
      card: what there is to say about the model, free form.
    """

    components: Mapping[str, Component]
    tokenizer: bytes | None = None
    diffusion: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    licences: tuple[str, ...] = ()
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def with_raw_latents(bundle: Bundle) -> Bundle:
    """The autoencoder of `bundle` alone, whose latents are what the encoder makes, with nothing subtracted or divided."""
    if "autoencoder" not in bundle.components:
        raise BundleError("raw latents are those of an autoencoder, and there is none")
    autoencoder = bundle.components["autoencoder"]
    neutral = {
        "latent_mean": np.zeros_like(autoencoder.extra["latent_mean"]),
        "latent_std": np.ones_like(autoencoder.extra["latent_std"]),
    }
    raw = dataclasses.replace(autoencoder, extra={**autoencoder.extra, **neutral})
    return Bundle({"autoencoder": raw}, licences=bundle.licences, card={**bundle.card, RAW_LATENTS: True})


def encoder_checksum(autoencoder: Component) -> str:
    """SHA-256 over all that latents depend on: names and float32 values of the encoder's arrays and the statistics."""
    if not isinstance(autoencoder.params.get("encoder"), dict):
        raise BundleError("the autoencoder has no encoder")
    return _checksum({"encoder": autoencoder.params["encoder"], "extra": autoencoder.extra})


def text_checksum(encoder: Bundle) -> str:
    """SHA-256 over all that text embeddings depend on: the encoder's arrays and its tokenizer."""
    tokenizer = hashlib.sha256(encoder.tokenizer or b"").hexdigest()
    return _checksum({f"tokenizer {tokenizer}": np.zeros(()), "encoder": encoder.components["text_encoder"].params})


def bundle_checksum(bundle: Bundle) -> str:
    """SHA-256 over all that its videos depend on: every component's config and arrays, the tokenizer, the configs of diffusion and sampler."""
    configs = {name: component.config for name, component in bundle.components.items()}
    told = json.dumps([configs, bundle.diffusion, bundle.sampler], sort_keys=True).encode() + (bundle.tokenizer or b"")
    arrays = {name: {"params": part.params, "extra": part.extra} for name, part in bundle.components.items()}
    return _checksum({f"told {_sha256(told)}": np.zeros(()), **arrays})


def _checksum(tree: Tree) -> str:
    digest = hashlib.sha256()
    for name, array in flatten(tree).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()


def is_bundle(path: epath.PathLike) -> bool:
    """Whether the folder has a bundle's index."""
    return (epath.Path(path) / INDEX).exists()


def write_bundle(bundle: Bundle, path: epath.PathLike, dtype: Literal["float32", "float16"] = "float32") -> None:
    """Writes `bundle` as the folder `path`, which appears only once it is whole; an older bundle there is replaced.

    `dtype` is the storage type of parameters; other variables stay float32.

    Raises:
      BundleError: `path` holds anything besides a bundle, or a parameter does not fit the storage type.
    """
    target = epath.Path(path)
    _check_free(target)
    index: dict[str, Any] = {"format": FORMAT, "components": {}, "tokenizer": None}
    files: dict[str, bytes] = {}
    for name, component in bundle.components.items():
        file = f"{name}.safetensors"
        files[file] = _to_bytes(name, component, dtype)
        index["components"][name] = {"file": file, "sha256": _sha256(files[file]), "config": component.config}
    if bundle.tokenizer is not None:
        files[TOKENIZER] = bundle.tokenizer
        index["tokenizer"] = {"file": TOKENIZER, "sha256": _sha256(bundle.tokenizer)}
    index |= {
        "diffusion": bundle.diffusion,
        "sampler": bundle.sampler,
        "licences": bundle.licences,
        "card": bundle.card,
    }
    try:
        # Last, since a folder without it is no bundle.
        files[INDEX] = f"{json.dumps(index, indent=2, allow_nan=False)}\n".encode()
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"{target}: the configs and the card of a bundle must be plain JSON values: {error}"
        ) from error
    _write_folder(target, files)


def read_bundle(path: epath.PathLike) -> Bundle:
    """The bundle in the folder `path`, local or `gs://`, its checksums verified.

    Raises:
      BundleError: naming the file that is missing, damaged or of an unknown format.
    """
    folder = epath.Path(path)
    index = _read_index(folder / INDEX)
    components = {}
    for name, entry in _section(index, "components", folder).items():
        if name not in COMPONENTS:
            raise BundleError(f"{folder / INDEX}: unknown component {name!r}, expected {', '.join(COMPONENTS)}")
        components[name] = _from_bytes(folder, entry, _read_checked(folder, entry, f"components.{name}"))
    if not components:
        raise BundleError(f"{folder / INDEX}: the bundle has no components")
    tokenizer = index.get("tokenizer")
    try:
        licences = typed(index.get("licences") or [], list, "licences")
        return Bundle(
            components=components,
            tokenizer=None if tokenizer is None else _read_checked(folder, tokenizer, "tokenizer"),
            diffusion=None if index.get("diffusion") is None else field(index, "diffusion", dict),
            sampler=None if index.get("sampler") is None else field(index, "sampler", dict),
            licences=tuple(typed(licence, str, "a licence") for licence in licences),
            card=_card(index.get("card") or {}),
        )
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"{folder / INDEX} mistypes a field: {error}") from error


def _card(card: Any) -> Mapping[str, Any]:
    if field({"fps": 1.0} | typed(card, dict, "card"), "fps", float) <= 0:
        raise ValueError(f"the card's fps must be positive, got {card['fps']}")
    return card


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """A nested dict as {"a/b/c": leaf}, sorted by path."""
    flat: dict[str, Any] = {}
    for name in sorted(tree):
        value = tree[name]
        flat |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Inverse of `flatten`; `ValueError` for a path that is also the beginning of another."""
    tree: Tree = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path!r} lies inside of something that is a leaf")
        if last in node:
            raise ValueError(f"{path!r} is a leaf and has others inside")
        node[last] = value
    return tree


def _check_free(target: epath.Path) -> None:
    """Refuses a target that holds a file which is not part of a bundle: replacing the bundle would delete it."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not is_bundle(target):
        raise BundleError(f"{target} exists and is not a bundle, so it is left as it is; choose another output folder")
    index = _read_index(target / INDEX)
    entries = [*_section(index, "components", target).values(), index.get("tokenizer")]
    own = {INDEX, *(str(entry.get("file")) for entry in entries if isinstance(entry, dict))}
    foreign = sorted(file.name for file in target.iterdir() if file.name not in own)
    if foreign:
        raise BundleError(
            f"{target / foreign[0]} is not part of the bundle beside it, so the folder is left as it is; move the file away "
            "or choose another output folder"
        )


def _write_folder(target: epath.Path, files: Mapping[str, bytes]) -> None:
    mark = uuid.uuid4().hex[:8]
    fresh, old = (target.parent / f".{target.name}.{mark}.{what}" for what in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        _swap(fresh, target, old)
    except OSError as error:
        raise BundleError(f"{target} cannot be written: {error}") from error
    finally:
        if fresh.exists():
            fresh.rmtree()
    if old.exists():
        old.rmtree()


def _swap(fresh: epath.Path, target: epath.Path, old: epath.Path) -> None:
    """Puts `fresh` in the place of `target`, which becomes `old`, or changes nothing."""
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def _read_index(path: epath.Path) -> dict[str, Any]:
    try:
        index = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise BundleError(f"{path} does not exist, so {path.parent} is not a bundle") from error
    except (ValueError, OSError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    if not isinstance(index, dict) or type(index.get("format")) is not int:
        raise BundleError(f"{path} is not the index of a bundle: it has no format number")
    if index["format"] != FORMAT:
        raise BundleError(
            f"{path} has format {index['format']}, and this version reads format {FORMAT}; install a newer version of walt"
        )
    return index


def _section(index: Mapping[str, Any], name: str, folder: epath.Path) -> Mapping[str, Any]:
    section = index.get(name)
    if not isinstance(section, dict):
        raise BundleError(f"{folder / INDEX}: section {name!r} is missing")
    return section


def _read_checked(folder: epath.Path, entry: Any, what: str) -> bytes:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("file", "sha256")):
        raise BundleError(f"{folder / INDEX}: {what} must name a file and its sha256")
    name = entry["file"]
    # A bundle comes from anywhere: it must not make us read elsewhere on the disk.
    if name != epath.Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise BundleError(f"{folder / INDEX}: {what} names the file {name!r}, which is not a plain file name")
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{folder / name} is missing; the bundle is incomplete") from error
    except OSError as error:
        raise BundleError(f"{folder / name} cannot be read: {error}") from error
    if _sha256(data) != entry["sha256"]:
        raise BundleError(f"{folder / name} is damaged or was replaced: its SHA-256 is not the one in {INDEX}")
    return data


def _to_bytes(name: str, component: Component, dtype: str) -> bytes:
    arrays = {}
    for path, leaf in flatten({"params": component.params, "extra": component.extra}).items():
        array = np.asarray(leaf)
        if np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
            if dtype == "float16" and path.startswith("params/"):
                array = _as_float16(array, f"{name}: {path}")
        arrays[path] = np.ascontiguousarray(array)
    return safetensors.numpy.save(arrays)


def _as_float16(array: np.ndarray, what: str) -> np.ndarray:
    largest = np.max(np.abs(array), initial=0.0)
    if largest > np.finfo(np.float16).max:
        raise BundleError(f"{what} holds {largest:.3g}, which float16 cannot; use dtype='float32'")
    return array.astype(np.float16)


def _from_bytes(folder: epath.Path, entry: Mapping[str, Any], data: bytes) -> Component:
    file = folder / entry["file"]
    try:
        arrays = safetensors.numpy.load(data)
        widened = {
            path: array.astype(np.float32) if array.dtype == np.float16 else array for path, array in arrays.items()
        }
        tree = unflatten(widened)
        parts = {part: typed(tree.get(part, {}), dict, part) for part in ("params", "extra")}
    except Exception as error:  # safetensors raises its own errors, KeyError for types that numpy lacks, and others
        raise BundleError(f"{file} is not a readable safetensors file: {error}") from error
    if not isinstance(entry.get("config"), dict):
        raise BundleError(f"{folder / INDEX}: the component in {entry['file']} has no config")
    return Component(config=entry["config"], **parts)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
