"""Where metrics go: `workdir/metrics.jsonl` (one JSON object per line) and TensorBoard event files in
`workdir/tensorboard`.

Every line has "step" and "time" (seconds since 1970). Non-finite numbers are written as null, which JSON has. In a job
of several hosts only the first one writes.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from walt import jsonlines
from walt.untrusted import parse_json

FILE = "metrics.jsonl"


class MetricsError(ValueError):
    """A log of metrics cannot be read; the message names file and line."""


class MetricLog:
    """Appends to the log of a work directory from `step` on; lines of later steps, which a resumed run writes again,
    are removed first.
    """

    def __init__(self, workdir: epath.PathLike, step: int):
        self._path = epath.Path(workdir) / FILE
        self._writes, self._step = jax.process_index() == 0, step
        kept = [record for record in read_metrics(workdir) if record["step"] <= step]
        # On every host: all must agree.
        self._seen = {(record["step"], name): value for record in kept for name, value in record.items()}
        if self._writes:
            jsonlines.rewrite(self._path, kept)

    @functools.cached_property
    def _board(self) -> SummaryWriter:
        # Made at the first write: a run that has finished leaves no event file when it is started again.
        return SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=self._step + 1 if self._step else None)

    def has(self, step: int, prefix: str) -> bool:
        """Whether a metric whose name starts with `prefix` is logged for that step."""
        return any(at == step and name.startswith(prefix) for at, name in self._seen)

    def value(self, step: int, name: str) -> float | None:
        """What was logged under that name for that step, unless it is no finite number."""
        value = self._seen.get((step, name))
        return value if value is not None and math.isfinite(value) else None

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Log floats, and uint8 arrays [N,T,H,W,3] as videos (TensorBoard only)."""
        self._seen |= {(step, name): float(value) if np.ndim(value) == 0 else None for name, value in metrics.items()}
        if not self._writes:
            return
        videos = {name: value for name, value in metrics.items() if np.ndim(value) == 5}
        scalars = {name: float(value) for name, value in metrics.items() if name not in videos}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with self._putting_up_with_errors(f"the metrics of step {step}"):
            jsonlines.append(self._path, [{"step": step, "time": time.time(), **finite}])
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
            for name, value in videos.items():
                self._board.file_writer.add_summary(video_summary(name, value), step)
            self._board.flush()

    def close(self) -> None:
        if "_board" in vars(self):
            with self._putting_up_with_errors("the last metrics"):
                self._board.close()

    @contextlib.contextmanager
    def _putting_up_with_errors(self, what: str) -> Iterator[None]:
        """A full disk, for instance, or a bucket that does not answer, whose errors are of any kind: whether the run goes on is decided where
        it is saved.
        """
        try:
            yield
        except Exception as error:
            logging.warning("%s could not be written to %s: %s", what, self._path.parent, error)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """All lines of the log; a last line that an interruption cut short is left out, and no log is an empty one.

    Raises `MetricsError` for any other line that is no JSON object with a step.
    """
    path = epath.Path(workdir) / FILE
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise MetricsError(f"{path}, line {number}: not a JSON record ({error})") from error
        if not isinstance(record, dict) or "step" not in record:
            raise MetricsError(f"{path}, line {number}: a metrics record must be a JSON object with a step")
        records.append(record)
    return records


def video_summary(name: str, videos: UInt8[np.ndarray, "n t h w 3"], fps: float = 8.0) -> Summary:
    """The videos side by side as one animated GIF in an image summary, which TensorBoard plays."""
    rows = max(1, round(math.sqrt(len(videos))))
    columns = -(-len(videos) // rows)
    blank = np.zeros((rows * columns - len(videos), *videos.shape[1:]), np.uint8)
    tiled = np.concatenate([videos, blank]).reshape(rows, columns, *videos.shape[1:])
    frames = np.concatenate(np.concatenate(tiled, axis=2), axis=2)  # [r,c,T,H,W,3] -> [c,T,rH,W,3] -> [T,rH,cW,3]
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "gif", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    height, width = frames.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
    return Summary(value=[Summary.Value(tag=name, image=image)])
