"""What a job of several stages remembers between starts: the request, its decisions, and what each stage took."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from walt.config import ConfigError
from walt.evaluation import peak_memory_gb
from walt.untrusted import parse_json, typed


class Progress:
    """Kept as `progress.json` in the job's folder, from the end of the first stage or from the first decision on.

    A folder that was begun with another request is refused (`ConfigError` with the differences), before anything in it is
    touched.

    Attributes:
      seconds: time of every stage so far.
      peak_memory_gb: largest of all starts so far.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]):
        self._path = folder / "progress.json"
        try:
            stored = typed(parse_json(self._path.read_bytes()), dict, "it") if self._path.exists() else {}
        except ValueError as error:
            raise ConfigError(f"{self._path} cannot be read ({error}); move {folder} away or choose another") from error
        request = json.loads(json.dumps(request))
        earlier = stored.get("request", request)
        if earlier != request:
            names = sorted(name for name in request | earlier if earlier.get(name) != request.get(name))
            changes = ", ".join(f"{name}: {earlier.get(name)!r} -> {request.get(name)!r}" for name in names)
            raise ConfigError(f"{folder} was begun with other settings ({changes}); use those again, or another folder")
        self._request = request
        self._decisions: dict[str, int] = stored.get("decisions", {})
        self.seconds: dict[str, float] = stored.get("seconds", {})
        self.peak_memory_gb: float = stored.get("peak_memory_gb", 0.0)

    def decide(self, name: str, choose: Callable[[], int]) -> int:
        """What was chosen at the first start, so that a later one goes on with the same run."""
        if name not in self._decisions:
            self._decisions[name] = choose()
            self._save()
        return self._decisions[name]

    @contextlib.contextmanager
    def stage(self, name: str, *, continues: bool = False, result: Path | None = None) -> Iterator[None]:
        """Takes the time of the block, interrupted or not.

        A stage that `continues` where it was stopped adds to its time; another one starts over, and its last time counts.
        Where `result` exists already there is nothing left to do, so the time it took stays.
        """
        print(f"\n== {name}", flush=True)
        done, began = result is not None and result.exists(), time.perf_counter()
        try:
            yield
        finally:
            if not done:
                before = self.seconds.get(name, 0.0) if continues else 0.0
                self.seconds[name] = round(before + time.perf_counter() - began, 1)
            self._save()

    def _save(self) -> None:
        self.peak_memory_gb = max(self.peak_memory_gb, peak_memory_gb())
        stored = {
            "request": self._request,
            "decisions": self._decisions,
            "seconds": self.seconds,
            "peak_memory_gb": self.peak_memory_gb,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, stored)


def write_json(path: epath.PathLike, values: Any) -> None:
    """Indented JSON; the file is replaced as a whole."""
    path = epath.Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    partial.replace(path)
