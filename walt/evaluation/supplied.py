"""Weights that users bring along: of Inception-v3 and C3D, which no package on PyPI holds.

`walt convert inception` and `walt convert c3d` read a torch file that holds a state dict, given its SHA-256, without torch and without running what it
says, and write a safetensors file with the SHA-256 of where it came from. `walt evaluate --weights=FILE` takes that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from walt.autoencoder.torch_file import TorchFileError, read_tensors
from walt.evaluation import c3d, inception
from walt.evaluation.clips import EvaluationError

Arrays = Mapping[str, np.ndarray]
ORIGIN = "origin.sha256"
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"
"""With which the SHA-256 of the file begins, as its name says."""


def expected(network: str, arrays: Arrays) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a network's arrays, by name; of C3D with as many classes as there are."""
    if network == "inception":
        return inception.shapes()
    return c3d.shapes(len(arrays["fc8.bias"]) if "fc8.bias" in arrays else 101)


def read_torch(network: str, path: str | os.PathLike[str], sha256: str) -> dict[str, np.ndarray]:
    """The weights in a torch file with this SHA-256, under which it was published. Raises `EvaluationError`."""
    try:
        tensors = read_tensors(path, sha256)
    except TorchFileError as error:
        raise EvaluationError(str(error)) from error
    return {**_checked(network, tensors, path), ORIGIN: np.frombuffer(bytes.fromhex(sha256), np.uint8)}


def write(arrays: Arrays, path: str | os.PathLike[str]) -> None:
    """Writes them as safetensors."""
    Path(path).write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()}))


def reader(network: str, title: str, what: str) -> Callable[[str | None], Arrays]:
    """What reads the weights of a network out of a file that `write` wrote; it raises `EvaluationError` for any other, and for none."""

    def read(path: str | None) -> Arrays:
        if path is None:
            raise EvaluationError(
                f"the weights of {title} are in no package: get {what}, then walt convert {network} --input=FILE --sha256=… "
                f"--output={network}.safetensors, and name that with --weights"
            )
        try:
            arrays = safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise EvaluationError(
                f"{path} is no readable safetensors file; walt convert {network} writes one: {error}"
            ) from error
        origin = {ORIGIN: arrays[ORIGIN]} if ORIGIN in arrays else {}
        return {**_checked(network, arrays, path), **origin}

    return read


def is_of_inception(arrays: Arrays) -> bool:
    """Whether these weights are those of the file that the community measures with."""
    return ORIGIN in arrays and arrays[ORIGIN].tobytes().hex().startswith(INCEPTION_SHA256)


def _checked(network: str, arrays: Arrays, path: Any) -> dict[str, np.ndarray]:
    shapes = expected(network, arrays)
    if absent := sorted(shapes.keys() - arrays.keys()):
        raise EvaluationError(
            f"{path} does not hold the weights of {network}: {absent[0]} and {len(absent) - 1} others are missing"
        )
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            found = f"{arrays[name].dtype} {list(arrays[name].shape)}"
            raise EvaluationError(f"{path}: {name} should be float32 {list(shape)}, is {found}")
    return {name: arrays[name] for name in shapes}
