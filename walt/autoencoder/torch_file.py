"""Reads tensors from a file written by `torch.save` or `torch.jit.save`, without torch and without unpickling.

Two formats, both a pickle of tensors that refer to raw storages by key:

    legacy  (torch < 1.6)  pickles of a magic number, the protocol, facts about the machine, the object and the list of
                           storage keys; then, for each key, an int64 number of elements and the elements
    zip     (torch >= 1.6) NAME/data.pkl, and NAME/data/KEY for each storage

The second is TorchScript's as well, whose object is a tree of modules; its code is left unread.

A pickle is a program for a machine with a stack. `_Machine` is one that knows only the instructions which torch's files need
and makes nothing but numbers, texts, tuples, lists, dicts, modules (which are dicts) and tensors; any other name or instruction ends the reading. A file is
not looked into at all before its SHA-256 is found right.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickletools
import zipfile
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
_MAX_DEPTH = 100  # of modules within modules
_MAX_COPIES = 16  # tensors may share storages, but all of them together are not larger than so many files


class TorchFileError(ValueError):
    """A file that cannot or must not be read; the message names it and says why."""


class _Name(NamedTuple):
    """A function or class that a pickle names. Nothing is imported: the machine knows what to do for the few it allows."""

    module: str
    name: str


class _Storage(NamedTuple):
    """Values in memory, of which tensors are views."""

    values: np.ndarray


class _Module(dict[str, Any]):
    """Stands for any module of TorchScript: its attributes by name."""

    __slots__ = ()


ORDERED_DICT, REBUILD = _Name("collections", "OrderedDict"), _Name("torch._utils", "_rebuild_tensor_v2")
LISTS = {_Name("torch.jit._pickle", f"build_{kind}list") for kind in ("int", "tensor", "double", "bool")}
ALLOWED = {ORDERED_DICT, REBUILD, *LISTS, *(_Name("torch", name) for name in DTYPES)}
_MARK = object()


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
    if not isinstance(tensors, dict) or not all(isinstance(array, np.ndarray) for array in tensors.values()):
        raise TorchFileError(f"{path} holds something else than a dict of tensors")
    if sum(array.nbytes for array in tensors.values()) > _MAX_COPIES * len(data):
        raise TorchFileError(f"{path} holds tensors that are together far larger than the file")
    return {name: np.array(array) for name, array in tensors.items()}  # copies: no tensor keeps a whole storage alive


def _parameters(module: _Module, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a module and of those within it, with the names that its `state_dict` gives them."""
    if depth > _MAX_DEPTH:
        raise ValueError("its modules lie in each other without end")
    for name, value in module.items():
        if isinstance(value, _Module):
            yield from _parameters(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, np.ndarray):
            yield f"{prefix}{name}", value


class _Machine:
    """Runs the pickle that begins where `file` stands, up to its last instruction, and asks `storage(dtype, key, elements)` for
    the storages. Raises `TorchFileError` for names that are not allowed, and whatever else comes up.
    """

    def __init__(self, file: io.BytesIO, storage: Callable[[str, str, int], np.ndarray]):
        self._file, self._storage = file, storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle stands for."""
        for instruction, argument, _ in pickletools.genops(self._file):
            if instruction.name == "STOP":
                (result,) = self._stack
                return result
            self._do(instruction.name, argument)

    def _do(self, instruction: str, argument: Any) -> None:
        stack = self._stack
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(instruction[-1]))))
            case "LIST":
                stack.append(self._marked())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND" | "APPENDS":
                items = self._marked() if instruction == "APPENDS" else self._pop(1)
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._marked() if instruction == "SETITEMS" else self._pop(2)
                self._top(dict).update(self._pairs(items))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_allowed(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_allowed(*self._pop(2)))
            case "REDUCE":
                function, arguments = self._pop(2)
                stack.append(_call(function, arguments))
            case "NEWOBJ":
                kind, arguments = self._pop(2)
                stack.append(_new(kind, arguments))
            case "BINPERSID":
                stack.append(self._find(*self._pop(1)))
            case "BUILD":
                (attributes,) = self._pop(1)
                # Those that torch gives to an ordered dict nobody needs.
                if isinstance(self._top(dict), _Module) and isinstance(attributes, dict):
                    stack[-1].update(attributes)
            case _:
                raise ValueError(f"the instruction {instruction} is none that tensors need")

    def _pop(self, count: int) -> list[Any]:
        taken = self._stack[-count:]
        if len(taken) < count or any(value is _MARK for value in taken):
            raise ValueError("an instruction lacks its arguments")
        del self._stack[-count:]
        return taken

    def _marked(self) -> list[Any]:
        """What lies above the last mark, which goes with it."""
        place = next(place for place in reversed(range(len(self._stack))) if self._stack[place] is _MARK)
        taken = self._stack[place + 1 :]
        del self._stack[place:]
        return taken

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"an instruction for a {kind.__name__} finds none")
        return self._stack[-1]

    def _pairs(self, items: list[Any]) -> Iterator[tuple[str, Any]]:
        names, values = items[::2], items[1::2]
        # Other keys could be made so that to hash them takes for ever.
        if len(names) != len(values) or not all(isinstance(name, str) for name in names):
            raise ValueError("it holds a dict whose keys are not texts")
        return zip(names, values)

    def _find(self, pid: Any) -> _Storage:
        kind, storage_type, key, _device, elements, *view = pid
        known = isinstance(storage_type, _Name) and storage_type.name in DTYPES
        if kind != "storage" or not known or not isinstance(key, str) or any(view):
            raise ValueError("it refers to something else, and only whole storages are understood")
        if not isinstance(elements, int) or elements < 0:
            raise ValueError(f"storage {key} cannot have {elements!r} elements")
        return _Storage(self._storage(DTYPES[storage_type.name], key, elements))


def _allowed(module: Any, name: Any) -> _Name:
    script = isinstance(module, str) and module.partition(".")[0] == "__torch__"
    if not script and _Name(module, name) not in ALLOWED:
        raise TorchFileError(f"names {module}.{name}, which a file of tensors has no need of, so it is not read")
    return _Name(module, name)


def _call(function: Any, arguments: Any) -> Any:
    if function == ORDERED_DICT and arguments == ():
        return {}
    if function == REBUILD:
        return _tensor(*arguments)
    if function in LISTS and isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], list):
        return arguments[0]
    raise ValueError("it calls something that cannot be called")


def _new(kind: Any, arguments: Any) -> _Module:
    if not isinstance(kind, _Name) or not kind.module.startswith("__torch__") or arguments != ():
        raise ValueError("it makes an object that is no module")
    return _Module()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """A view of the storage, whose values may come later; what else torch notes of a tensor is for training."""
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in (offset, *shape, *strides)):
        raise ValueError("a tensor is made of something else than a storage and numbers")
    values = storage.values
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    outside = 0 not in shape and (last >= values.size or math.prod(shape) > values.size)
    if outside or min((offset, *shape, *strides)) < 0:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {values.size} elements")
    view = np.lib.stride_tricks.as_strided
    return view(values[offset:], shape, tuple(stride * values.itemsize for stride in strides))


def _no_storage(dtype: str, key: str, elements: int) -> np.ndarray:
    raise ValueError(f"storage {key} is out of place")


def _read_legacy(data: bytes) -> Any:
    file = io.BytesIO(data)
    storages: dict[str, np.ndarray] = {}
    room = len(data)

    def storage(dtype: str, key: str, elements: int) -> np.ndarray:
        nonlocal room
        if key not in storages:
            room -= elements * np.dtype(dtype).itemsize
            if room < 0:
                raise ValueError(f"storage {key} would be larger than the file")
            storages[key] = np.zeros(elements, dtype)
        return storages[key]

    if [_Machine(file, _no_storage).run() for _ in range(2)] != [MAGIC, PROTOCOL]:
        raise ValueError("it does not begin as one")
    if not _Machine(file, _no_storage).run()["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    tensors = _Machine(file, storage).run()
    for key in _Machine(file, _no_storage).run():
        array = storages.pop(key)
        (elements,) = np.frombuffer(file.read(8), "<i8")
        if elements != array.size:
            raise ValueError(f"storage {key} has {elements} elements and should have {array.size}")
        array[...] = np.frombuffer(file.read(array.nbytes), array.dtype)
    if storages:
        raise ValueError(f"it ends before storage {min(storages)}")
    return tensors


def _read_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # Torch compresses nothing; what is compressed here, or lies twice in one place, is there to fill the memory.
        if sum(member.file_size for member in archive.infolist()) > len(data):
            raise ValueError("it would unpack into more than it is")
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = index.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        storages: dict[tuple[str, str], np.ndarray] = {}

        def storage(dtype: str, key: str, elements: int) -> np.ndarray:
            if (dtype, key) not in storages:
                storages[dtype, key] = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
            return storages[dtype, key][:elements]

        return _Machine(io.BytesIO(archive.read(index)), storage).run()
