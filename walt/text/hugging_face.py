"""Reads model folders as Hugging Face's libraries write them: config.json and one or several safetensors files.

Nothing in them is code: JSON and plain arrays alone are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from walt.training.task import Tree
from walt.untrusted import field, parse_json, typed

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class ModelFolderError(ValueError):
    """A folder that does not hold the model it should; the message names the file or array."""


class Source(NamedTuple):
    """Where an array comes from: its name there, and whether it is a [out, in] matrix, which ours has transposed."""

    name: str
    transposed: bool = False


def read_config(folder: Path, architecture: str) -> dict[str, Any]:
    """config.json of a model of a `model_type`.

    Raises:
      ModelFolderError: it is missing, no JSON, or of another model.
    """
    path = folder / "config.json"
    try:
        config = typed(parse_json(path.read_bytes()), dict, "a config")
        found = config.get("model_type")
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read as the config of a model: {error}") from error
    if found != architecture:
        raise ModelFolderError(f"{path} is the config of a {found!r} model, not of a {architecture!r} one")
    return config


def read_arrays(folder: Path, sources: Mapping[str, Source], abstract: Tree) -> Tree:
    """float32 arrays as a nested dict.

    Args:
      folder: holds `model.safetensors`, or several such files and their index.
      sources: our path "a/b/c" -> where it comes from.
      abstract: the shapes they must have, one for each source.

    Raises:
      ModelFolderError: a file or an array is missing, cannot be read, or has another shape.
    """
    files = _files(folder)
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    expected = {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in leaves}
    assert expected.keys() == sources.keys()
    tree: Tree = {}
    for path, source in sources.items():
        if source.name not in files:
            raise ModelFolderError(f"{folder} has no array {source.name}")
        array = _read(files[source.name], source.name)
        array = array.T if source.transposed else array
        if array.shape != expected[path]:
            raise ModelFolderError(
                f"{source.name} in {folder} has shape {array.shape}, its config calls for {expected[path]}"
            )
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = np.ascontiguousarray(array)
    return tree


def _files(folder: Path) -> dict[str, Path]:
    """The file of every array."""
    single, index = folder / SINGLE, folder / INDEX
    try:
        if single.is_file():
            with safetensors.safe_open(single, framework="flax") as file:
                return dict.fromkeys(file.keys(), single)
        weight_map = field(parse_json(index.read_bytes()), "weight_map", dict)
        return {name: folder / _plain_name(file) for name, file in weight_map.items()}
    except FileNotFoundError as error:
        raise ModelFolderError(f"{folder} holds neither {SINGLE} nor {INDEX}") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelFolderError(f"the weights in {folder} cannot be read: {error}") from error


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with safetensors.safe_open(path, framework="flax") as file:  # NumPy alone has no bfloat16
            return np.asarray(file.get_tensor(name), np.float32)
    except Exception as error:  # safetensors raises its own errors, and flax others for types that it lacks
        raise ModelFolderError(f"{name} in {path} cannot be read: {error}") from error


def _plain_name(file: Any) -> str:
    """The name of a file in the same folder: no index makes us read elsewhere on the disk."""
    name = typed(file, str, "a file of weights")
    if name != Path(name).name or name in ("", "..") or "\0" in name:
        raise ValueError(f"{file!r} is not a plain file name")
    return name
