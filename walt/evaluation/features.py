"""Features of many videos: decoded by all cores while all devices compute, in bounded memory, kept on disk and resumed.

Every `PART` clips are one file in a folder of the cache that is named after all that their features depend on, so nothing is computed
twice and nothing stale is taken.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt.data import media
from walt.data.bar import progress_bar
from walt.data.records import DatasetError
from walt.evaluation import i3d_weights
from walt.evaluation.clips import EvaluationError
from walt.evaluation.environment import available_cores
from walt.evaluation.footage import Footage, Video
from walt.evaluation.i3d import I3D, LOGITS, weight_tree
from walt.evaluation.protocols import Protocol
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_sharding, batch_shards, make_mesh, replicated
from walt.training.module import Functional

PART = 64
PER_DEVICE = 4
MOST_BAD = 0.02
"""Share of videos that may be unreadable or too short before the evaluation stops; one may always."""


class Extractor:
    """Clips of one protocol to logits, on all devices of a mesh.

    Attributes:
      checksum: of the weights, see `i3d_weights.checksum`.
    """

    def __init__(
        self, protocol: Protocol, weights: i3d_weights.Arrays | None = None, mesh: jax.sharding.Mesh | None = None
    ):
        """With `weights` (default: those of the extra `fvd`) on `mesh` (default: all devices of this host, which works alone)."""
        weights = i3d_weights.read() if weights is None else weights
        self.protocol, self.mesh = protocol, make_mesh(MeshConfig(), jax.local_devices()) if mesh is None else mesh
        self.checksum = i3d_weights.checksum(weights)
        self.batch_size = PER_DEVICE * batch_shards(self.mesh)
        self._model = Functional(lambda _: I3D())
        self._weights = jax.device_put(weight_tree(weights, protocol.epsilon), replicated(self.mesh))
        self._run = jax.jit(self._logits, out_shardings=replicated(self.mesh))

    def _logits(self, weights: Any, clips: Array) -> Array:
        frames = clips.astype(jnp.float32)
        for resize in self.protocol.resizes:
            frames = resize.on_device(frames)
        return self._model.bind({}, weights)(2 * frames / 255 - 1)

    def __call__(self, clips: Sequence[np.ndarray]) -> Callable[[], Float[np.ndarray, "n 400"]]:
        """Starts on at most `batch_size` prepared clips of one shape; the function returned waits for their logits."""
        batch = np.stack([*clips, *[clips[-1]] * (self.batch_size - len(clips))])  # one shape is one compilation
        logits = self._run(self._weights, jax.device_put(batch, batch_sharding(self.mesh)))
        return lambda: np.asarray(logits)[: len(clips)]


@dataclass(frozen=True, eq=False)
class Features:
    """Logits of the videos that could be read, in their order; what was wrong with the others; the checksum of all contents."""

    logits: Float[np.ndarray, "n 400"]
    bad: tuple[str, ...]
    fingerprint: str
    clip_shape: tuple[int, ...]


def extract_features(
    footage: Footage, extractor: Extractor, *, random_start: bool, seed: int, cache: Path | None, title: str
) -> Features:
    """Of one clip of every video, its first frames or from a random one on.

    Raises:
      EvaluationError: clips of unlike shapes; more videos than `MOST_BAD` allows are unreadable or too short.
    """
    fingerprint = footage.fingerprint()
    size = math.ceil(PART / extractor.batch_size) * extractor.batch_size
    starts = range(0, len(footage), size)
    folder = None if cache is None else _folder(cache, extractor, fingerprint, len(footage), size, random_start, seed)
    parts = {start: _load(folder, start) for start in starts}
    missing = [start for start in starts if parts[start] is None]
    shapes: dict[tuple[int, ...], str] = {}
    for part in parts.values():
        if part is not None and len(part.logits):
            shapes.setdefault(part.clip_shape, "an earlier video")
    decoding = _decoded(footage, extractor.protocol, missing, size, random_start, seed)
    with progress_bar(total=len(footage), desc=title, unit="clip") as bar:
        bar.update(sum(min(size, len(footage) - start) for start in starts if parts[start] is not None))
        for start in missing:
            part = _compute(decoding, min(size, len(footage) - start), extractor, shapes, bar)
            parts[start] = part
            _save(folder, start, part)
            _check_bad([p for p in parts.values() if p is not None], len(footage), title)
    found = [part for part in parts.values() if part is not None]
    _check_bad(found, len(footage), title)
    return Features(
        np.concatenate([part.logits for part in found]),
        tuple(message for part in found for message in part.bad),
        fingerprint,
        next(iter(shapes), ()),
    )


def _check_bad(parts: Sequence[Features], count: int, title: str) -> None:
    bad = [message for part in parts for message in part.bad]
    if len(bad) > max(MOST_BAD * count, 1):
        raise EvaluationError(
            f"{title}: {len(bad)} of {count} videos cannot be used, more than {MOST_BAD:.0%}; the first: {'; '.join(bad[:3])}"
        )


def _decoded(
    footage: Footage, protocol: Protocol, starts: Sequence[int], size: int, random_start: bool, seed: int
) -> Iterator[tuple[Video, np.ndarray | Exception]]:
    """The prepared clip of every video of these parts in order, or why there is none; a few are decoded ahead by all cores."""

    def clip(row: int) -> np.ndarray:
        random = np.random.default_rng([seed, row])
        choose = (lambda places: int(random.integers(places))) if random_start else (lambda places: 0)
        return protocol.prepared(footage.videos[row].clip(protocol.frames, protocol.stride, choose))

    rows = iter([row for start in starts for row in range(start, min(start + size, len(footage)))])
    workers = available_cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
        try:
            while True:
                while len(waiting) < 2 * workers + 2 * PER_DEVICE and (row := next(rows, None)) is not None:
                    waiting.append((row, pool.submit(clip, row)))
                if not waiting:
                    return
                row, future = waiting.popleft()
                try:
                    yield footage.videos[row], future.result()
                except (media.MediaError, DatasetError, EvaluationError) as error:
                    yield footage.videos[row], error
        finally:
            for _, future in waiting:
                future.cancel()


def _compute(
    decoding: Iterator[tuple[Video, np.ndarray | Exception]],
    count: int,
    extractor: Extractor,
    shapes: dict[tuple[int, ...], str],
    bar: Any,
) -> Features:
    """The next `count` videos. One batch is computed while the next is decoded; the bar counts what is finished."""
    batch: list[np.ndarray] = []
    logits, bad = [np.empty((0, LOGITS), np.float32)], []
    computing: deque[Callable[[], np.ndarray]] = deque()

    def finish(most: int) -> None:
        while len(computing) > most:
            logits.append(computing.popleft()())
            bar.update(len(logits[-1]))

    for _ in range(count):
        video, clip = next(decoding)
        if isinstance(clip, Exception):
            bad.append(str(clip))
            bar.update()
            continue
        _check_shape(shapes, clip.shape, video.name)
        batch.append(clip)
        if len(batch) == extractor.batch_size:
            computing.append(extractor(batch))
            batch = []
            finish(most=1)
    if batch:
        computing.append(extractor(batch))
    finish(most=0)
    found = [rows for rows in logits if len(rows)] or logits
    return Features(np.concatenate(found), tuple(bad), "", next(iter(shapes), ()))


def _check_shape(shapes: dict[tuple[int, ...], str], shape: tuple[int, ...], name: str) -> None:
    """Notes who brought a shape first. Raises `EvaluationError` for a second shape."""
    shapes.setdefault(shape, name)
    if len(shapes) > 1:
        (first, other), *_ = shapes.items()
        raise EvaluationError(
            f"{name} gives a clip of {list(shape)} but {other} one of {list(first)}: all need one shape"
        )


# ---- the cache


def default_cache() -> Path:
    """Where features are kept unless something else is asked for."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "walt" / "features"


def _folder(cache: Path, extractor: Extractor, *rest: Any) -> Path:
    protocol = extractor.protocol
    reading = (
        protocol.frames,
        protocol.stride,
        protocol.prepare,
        protocol.quantise,
        protocol.resizes,
        protocol.epsilon,
    )
    key = json.dumps([1, extractor.checksum, repr(reading), *rest])
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def _load(folder: Path | None, start: int) -> Features | None:
    """A part of an earlier run; one that cannot be read counts as absent."""
    if folder is None:
        return None
    try:
        with np.load(folder / f"{start:08d}.npz", allow_pickle=False) as stored:
            bad = tuple(str(message) for message in stored["bad"])
            return Features(stored["logits"], bad, "", tuple(int(side) for side in stored["clip_shape"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(folder: Path | None, start: int, part: Features) -> None:
    if folder is not None:
        with media.atomic_path(folder / f"{start:08d}.npz") as temporary:
            np.savez(temporary, logits=part.logits, bad=np.array(part.bad, dtype=str), clip_shape=part.clip_shape)
