"""A profiler trace of some steps, to be looked at in TensorBoard or Perfetto."""

from __future__ import annotations

import jax
from etils import epath


class Profiler:
    """Traces `steps` into `workdir/profile`."""

    def __init__(self, workdir: epath.PathLike, steps: range):
        self._folder, self._tracing = epath.Path(workdir) / "profile", False
        self._range = steps

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
