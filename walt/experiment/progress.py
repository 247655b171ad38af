"""What a job of several stages remembers between starts: the request, its decisions, and the time each stage took."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from walt.config import ConfigError


class Progress:
    """Kept as `progress.json` in the job's folder.

    A folder that was begun with another request is refused (`ConfigError` with the differences), before anything in it is
    touched.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]):
        self._path = folder / "progress.json"
        try:
            stored = json.loads(self._path.read_text()) if self._path.exists() else {}
        except ValueError as error:
            raise ConfigError(f"{self._path} cannot be read ({error}); move {folder} away or choose another") from error
        request = json.loads(json.dumps(request))
        earlier = stored.get("request", request)
        if earlier != request:
            names = sorted(name for name in request | earlier if earlier.get(name) != request.get(name))
            changes = ", ".join(f"{name}: {earlier.get(name)!r} -> {request.get(name)!r}" for name in names)
            raise ConfigError(f"{folder} was begun with other settings ({changes}); use those again, or another folder")
        self._decisions: dict[str, int] = stored.get("decisions", {})
        self.seconds: dict[str, float] = stored.get("seconds", {})
        self._request = request
        folder.mkdir(parents=True, exist_ok=True)
        self._save()

    def decide(self, name: str, choose: Callable[[], int]) -> int:
        """What was chosen at the first start, so that a later one goes on with the same run."""
        if name not in self._decisions:
            self._decisions[name] = choose()
            self._save()
        return self._decisions[name]

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to the stage's, interrupted or not."""
        print(f"\n== {name}", flush=True)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
            self._save()

    def _save(self) -> None:
        write_json(self._path, {"request": self._request, "decisions": self._decisions, "seconds": self.seconds})


def write_json(path: Path, values: Any) -> None:
    """Indented JSON; the file is replaced as a whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    partial.replace(path)
