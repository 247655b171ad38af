"""Good files made bad: edits of bytes, and edits of the values that a format holds, so that checksums and syntax do not protect them."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

WEIRD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 255, 2**31, 2**62, 2**63 - 1, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf"),
    "", ".", "..", "../../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "nul\0", "\ud800", "é", "x" * 5000, "os.system",
    b"", b"\0" * 64, b"\xff\xd8\xff\xe0", [], {}, [[]], [{}], [1, 2], {"a": {}}, {"": 0}, ["x"] * 300, {"__class__": "x"},
)  # fmt: skip


class Edit(NamedTuple):
    """What to change: a kind of change, and numbers that say where and by what."""

    kind: int
    place: int
    amount: int
    value: int


class Codec(NamedTuple):
    """A format as a value that can be edited."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]


JSON = Codec(json.loads, lambda value: json.dumps(value, default=repr).encode())
LINES = Codec(
    lambda data: [json.loads(line) for line in data.splitlines()],
    lambda rows: b"\n".join(JSON.encode(row) for row in (rows if isinstance(rows, list) else [rows])),
)
MSGPACK = Codec(msgpack.unpackb, lambda value: msgpack.packb(value, unicode_errors="surrogatepass"))


def _split_safetensors(data: bytes) -> list[Any]:
    (size,) = struct.unpack("<Q", data[:8])
    return [json.loads(data[8 : 8 + size]), data[8 + size :]]


def _join_safetensors(parts: Any) -> bytes:
    header, values = parts
    encoded = JSON.encode(header)
    return struct.pack("<Q", len(encoded)) + encoded + values


SAFETENSORS = Codec(_split_safetensors, _join_safetensors)


def mutate(seed: bytes, edits: Sequence[Edit], codec: Codec | None = None, tokens: Sequence[bytes] = ()) -> bytes:
    """The seed after the edits: those of even kind change values where the format has any, all others bytes."""
    data = seed
    if codec is not None:
        value = codec.decode(seed)
        for edit in edits:
            if edit.kind % 2 == 0:
                value = _edit_value(value, edit)
        try:
            data = codec.encode(value)
        except (TypeError, ValueError, OverflowError, AttributeError):  # nothing that the format can hold
            data = seed
        edits = [edit for edit in edits if edit.kind % 2]
    for edit in edits:
        data = _edit_bytes(data, edit, tokens)
    return data


def _edit_value(root: Any, edit: Edit) -> Any:
    """The value with one of its parts replaced, removed, renamed or doubled."""
    places = list(_places(root))
    weird = copy.deepcopy(WEIRD[edit.value % len(WEIRD)])
    if not places:
        return weird
    parent, key = places[edit.place % len(places)]
    action = edit.amount % 5
    if action <= 1:
        parent[key] = weird
    elif action == 2:
        del parent[key]
    elif isinstance(parent, dict):
        parent[weird if isinstance(weird, str) else str(weird)] = (
            copy.deepcopy(parent[key]) if action == 3 else parent.pop(key)
        )
    else:
        parent.insert(key, copy.deepcopy(parent[key]))
    return root


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _edit_bytes(data: bytes, edit: Edit, tokens: Sequence[bytes]) -> bytes:
    place, action = edit.place % (len(data) + 1), edit.kind // 2 % 6
    before, after = data[:place], data[place:]
    if action == 0 and after:
        return before + bytes([after[0] ^ (1 << edit.value % 8)]) + after[1:]
    if action == 1:
        return before + after[edit.amount :]
    if action == 2:
        return before + after[: edit.amount] * 2 + after[edit.amount :]
    if action == 3:
        return before + edit.value.to_bytes(8, "little")[: 1 + edit.amount % 8] + after[1 + edit.amount % 8 :]
    if action == 4 and tokens:
        return before + tokens[edit.value % len(tokens)] + after
    return before if edit.amount % 4 == 0 else before + bytes([edit.value % 256]) + after
