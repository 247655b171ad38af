"""Reads tensors from a file written by `torch.save` or `torch.jit.save`, without torch and without running what the file says.

Two formats, both a pickle of tensors that refer to raw storages by key:

    legacy  (torch < 1.6)  pickles of a magic number, the protocol, facts about the machine, the object and the list of
                           storage keys; then, for each key, an int64 number of elements and the elements
    zip     (torch >= 1.6) NAME/data.pkl, and NAME/data/KEY for each storage

The second is TorchScript's as well, whose object is a tree of modules; its code is left unread.

A pickle is a program. This one may name an ordered dict, the function that makes a tensor, the storage types and modules,
which become plain dicts; any other name ends the reading, and a file is not looked into at all before its SHA-256 is found
right.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


class TorchFileError(ValueError):
    """A file that cannot or must not be read; the message names it and says why."""


class _StorageType(NamedTuple):
    """Stands for `torch.FloatStorage` and its like; immutable, so no pickle can tamper with it."""

    dtype: str


class _RebuildTensor:
    """Stands for `torch._utils._rebuild_tensor_v2`; without a `__dict__`, so no pickle can tamper with it."""

    __slots__ = ()

    def __call__(
        self, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
    ) -> np.ndarray:
        """A view of the storage, whose values may come later; what else torch notes of a tensor is for training."""
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
            raise pickle.UnpicklingError(
                f"a tensor of shape {shape} reaches beyond its storage of {storage.size} elements"
            )
        view = np.lib.stride_tricks.as_strided
        return view(storage[offset:], shape, tuple(stride * storage.itemsize for stride in strides))


class _Module(dict[str, Any]):
    """Stands for any module of TorchScript: its attributes by name."""

    __slots__ = ()

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.update(attributes)


LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")

ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    **{("torch", name): _StorageType(dtype) for name, dtype in DTYPES.items()},
    **{("torch.jit._pickle", name): list for name in LISTS},
}


def read_tensors(path: str | os.PathLike[str], sha256: str) -> dict[str, np.ndarray]:
    """Name -> array of a file that holds a dict of tensors, such as a module's `state_dict`, or a TorchScript module.

    Raises:
      TorchFileError: the file is missing, its SHA-256 is another, or it holds anything but these.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TorchFileError(f"{path} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise TorchFileError(f"{path} is damaged or another file: its SHA-256 is {found} and should be {sha256}")
    try:
        tensors = (_read_zip if data.startswith(b"PK\x03\x04") else _read_legacy)(data)
    except TorchFileError as error:
        raise TorchFileError(f"{path} {error}") from error
    except Exception as error:  # a pickle can fail in as many ways as a program
        raise TorchFileError(f"{path} is not a readable torch file: {error}") from error
    if isinstance(tensors, _Module):
        tensors = dict(_parameters(tensors))
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray) for name, array in tensors.items()
    ):
        raise TorchFileError(f"{path} holds something else than a dict of tensors")
    return {name: np.array(array) for name, array in tensors.items()}  # copies: no tensor keeps a whole storage alive


def _parameters(module: _Module, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a module and of those within it, with the names that its `state_dict` gives them."""
    for name, value in module.items():
        if isinstance(value, _Module):
            yield from _parameters(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value


class _Unpickler(pickle.Unpickler):
    """Makes nothing but what is allowed, and asks `storage(dtype, key, elements)` for the storages."""

    def __init__(self, file: io.BytesIO, storage: Callable[[str, str, int], np.ndarray]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) not in ALLOWED:
            raise TorchFileError(f"names {module}.{name}, which a file of tensors has no need of, so it is not read")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _device, elements, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(view):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, and only whole storages are understood")
        return self._storage(storage_type.dtype, key, elements)


def _no_storage(dtype: str, key: str, elements: int) -> np.ndarray:
    raise pickle.UnpicklingError(f"storage {key} is out of place")


def _read_legacy(data: bytes) -> Any:
    file = io.BytesIO(data)
    storages: dict[str, np.ndarray] = {}

    def storage(dtype: str, key: str, elements: int) -> np.ndarray:
        if key not in storages:
            if elements * np.dtype(dtype).itemsize > len(data):
                raise pickle.UnpicklingError(f"storage {key} would be larger than the file")
            storages[key] = np.zeros(elements, dtype)
        return storages[key]

    if [_Unpickler(file, _no_storage).load() for _ in range(2)] != [MAGIC, PROTOCOL]:
        raise pickle.UnpicklingError("it does not begin as one")
    if not _Unpickler(file, _no_storage).load()["little_endian"]:
        raise pickle.UnpicklingError("it was written on a big-endian machine")
    tensors = _Unpickler(file, storage).load()
    for key in _Unpickler(file, _no_storage).load():
        array = storages.pop(key)
        (elements,) = np.frombuffer(file.read(8), "<i8")
        if elements != array.size:
            raise pickle.UnpicklingError(f"storage {key} has {elements} elements and should have {array.size}")
        array[...] = np.frombuffer(file.read(array.nbytes), array.dtype)
    if storages:
        raise pickle.UnpicklingError(f"it ends before storage {min(storages)}")
    return tensors


def _read_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("it was written on a big-endian machine")

        def storage(dtype: str, key: str, elements: int) -> np.ndarray:
            return np.frombuffer(archive.read(f"{folder}data/{key}"), dtype, elements)

        return _Unpickler(io.BytesIO(archive.read(index)), storage).load()
