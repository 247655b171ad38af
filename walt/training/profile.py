"""A profiler trace of some steps: `--profile=START:STOP`, looked at in TensorBoard or Perfetto."""

from __future__ import annotations

import re

import jax
from etils import epath

from walt.config import ConfigError


class Profiler:
    """Traces steps START to STOP-1 into `workdir/profile`; without a range does nothing."""

    def __init__(self, workdir: epath.PathLike, steps: str | None):
        self._folder, self._tracing = epath.Path(workdir) / "profile", False
        self._range = range(0)
        if steps:
            match = re.fullmatch(r"(\d+):(\d+)", steps)
            if match is None or int(match[1]) >= int(match[2]):
                raise ConfigError(f"profile must be START:STOP with START before STOP, such as 10:15, got {steps!r}")
            self._range = range(int(match[1]), int(match[2]))

    def at(self, step: int) -> None:
        """Call before step number `step` (from 0) runs."""
        if step in self._range and not self._tracing:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif step not in self._range:
            self.close()

    def close(self) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
