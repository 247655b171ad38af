"""A cache of decoded examples that never grows beyond its limit."""

import threading
from collections.abc import Callable
from typing import Any


class Cache:
    """Keeps the first values asked for until `limit` bytes are used; pickles as an empty cache."""

    def __init__(self, limit: int):
        self._limit = limit
        self._values: dict[tuple, Any] = {}
        self._used = 0
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[..., Any]) -> Any:
        """The value kept for the key, or `make(*key)`."""
        if key in self._values:
            return self._values[key]
        value = make(*key)
        with self._lock:
            if key not in self._values and self._used + value.nbytes <= self._limit:
                self._values[key] = value
                self._used += value.nbytes
        return value

    def __reduce__(self) -> tuple:
        return Cache, (self._limit,)
