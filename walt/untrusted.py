"""JSON from files that anybody may have written: data values of the types they should have, or a `ValueError`.

The lowest room, since every room that reads files needs it. Nothing that reads data, weights, checkpoints, manifests or captions
runs what it reads; `tests/test_untrusted.py` lists the readers and keeps `pickle`, `eval` and their like out of the package.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

MAX_NESTING = 64
"""Deepest nesting of objects and lists: far above what our files have, far below where Python's parser gives up."""


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text stands for.

    Raises:
      ValueError: the text is no JSON, not UTF-8, or nested more than `MAX_NESTING` deep; NaN and Infinity are no JSON either.
    """
    text = text.decode() if isinstance(text, bytes) else text
    too_deep = ValueError(f"objects and lists are nested more than {MAX_NESTING} deep")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise too_deep from None
    inside, depth = [value], 0
    while inside := [one for one in inside if isinstance(one, list | dict)]:
        depth += 1
        if depth > MAX_NESTING:
            raise too_deep
        inside = [one for outer in inside for one in (outer.values() if isinstance(outer, dict) else outer)]
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def typed(value: Any, kind: type[T], what: str) -> T:
    """The value if it is of the kind; `ValueError` naming `what` otherwise.

    An int will do for a float, a bool never does for a number; floats must be finite, and text must be Unicode that can be stored
    (half a surrogate pair, which JSON can spell, is not).
    """
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        shown = repr(value)
        raise ValueError(f"{what} must be {kind.__name__}, got {shown[:60]}{'…' if len(shown) > 60 else ''}")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{what} holds half a surrogate pair, which is no character: {ascii(value)[:60]}")
    return value


def field(mapping: Any, name: str, kind: type[T]) -> T:
    """The field of a JSON object, `typed`; `ValueError` if it is absent."""
    if name not in typed(mapping, dict, "what holds " + name):
        raise ValueError(f"the field {name!r} is missing")
    return typed(mapping[name], kind, name)
