"""Features of many videos: decoded by all cores while all devices compute, in bounded memory, kept on disk and resumed.

Every `PART` clips are one file in a folder of the cache that is named after all that their features depend on, so nothing is computed
twice and nothing stale is taken. Parts with videos that could not be read are not kept: what was wrong, a package or a disk, can be mended.
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
from jaxtyping import Array, Float, Int

from walt.data import media
from walt.data.bar import progress_bar
from walt.data.records import DatasetError
from walt.evaluation import networks
from walt.evaluation.clips import EvaluationError
from walt.evaluation.environment import available_cores
from walt.evaluation.footage import Footage, Video, of_arrays
from walt.evaluation.protocols import PIXELS, Protocol
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_sharding, batch_shards, make_mesh, replicated
from walt.parallel.processes import exchanged

PART = 64
PER_DEVICE = 4
MOST_BAD = 0.02
"""Share of videos that may be unreadable or too short before the evaluation stops; one may always."""


class Extractor:
    """Clips of one protocol to features of its network, on all devices of a mesh.

    Attributes:
      network: which it is.
      checksum: of its weights, see `networks.checksum`.
      published: whether they are those that the published names are for.
    """

    def __init__(
        self, protocol: Protocol, weights: networks.Arrays | None = None, mesh: jax.sharding.Mesh | None = None
    ):
        """With `weights` (default: those that are installed) on `mesh` (default: all devices of this host, which works alone)."""
        self.protocol, self.network = protocol, networks.NETWORKS[protocol.network]
        self.mesh = make_mesh(MeshConfig(), jax.local_devices()) if mesh is None else mesh
        weights = self.network.read(None) if weights is None else weights
        self.checksum, self.published = networks.checksum(weights), bool(self.network.published(weights))
        self.batch_size = PER_DEVICE * batch_shards(self.mesh)
        self._weights = jax.device_put(self.network.tree(weights, protocol.epsilon), replicated(self.mesh))
        self._run = jax.jit(self._features, out_shardings=replicated(self.mesh))

    def _features(self, weights: Any, clips: Array) -> Array:
        frames = clips.astype(jnp.float32)
        for resize in self.protocol.resizes:
            frames = resize.on_device(frames)
        return self.network.apply(weights, PIXELS[self.protocol.pixels](frames))

    def __call__(self, clips: Sequence[np.ndarray]) -> Callable[[], Float[np.ndarray, "n d"]]:
        """Starts on at most `batch_size` prepared clips of one shape; the function returned waits for their features."""
        batch = np.stack([*clips, *[clips[-1]] * (self.batch_size - len(clips))])  # one shape is one compilation
        with jax.set_mesh(self.mesh):  # a training run that asks has another, of all hosts
            values = self._run(self._weights, jax.device_put(batch, batch_sharding(self.mesh)))
        return lambda: np.asarray(values)[: len(clips)]

    def prepared(self, video: np.ndarray) -> np.ndarray:
        """The first frames of a video in memory, [t, h, w, 3], as they enter the network's program."""
        protocol, held = self.protocol, of_arrays([video], "generated").videos[0]
        return protocol.prepared(
            held.clip(protocol.frames, protocol.stride, lambda places: 0, self.network.fewest_frames)
        )

    def of_videos(self, videos: np.ndarray | Sequence[np.ndarray]) -> Float[np.ndarray, "n d"]:
        """Of the first frames of videos in memory, uint8 [t, h, w, 3]."""
        clips = [self.prepared(video) for video in videos]
        starts = range(0, len(clips), self.batch_size)
        computing = [self(clips[start : start + self.batch_size]) for start in starts]
        return np.concatenate([wait() for wait in computing])


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the videos that could be read, in their order, and which rows of the footage these are; what was wrong with the others;
    the checksum of all contents."""

    values: Float[np.ndarray, "n d"]
    rows: Int[np.ndarray, " n"]
    bad: tuple[str, ...]
    fingerprint: str
    clip_shape: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """Which of the processes of a job this is: each takes every `count`-th video, and all have the features of all."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_job(cls) -> Share:
        """This process's, of the job that it has joined."""
        return cls(jax.process_index(), jax.process_count())


ALONE = Share()


def extract_features(
    footage: Footage,
    extractor: Extractor,
    *,
    random_start: bool,
    seed: int,
    cache: Path | None,
    title: str,
    share: Share = ALONE,
) -> Features:
    """Of one clip of every video, its first frames or from a random one on. The processes of a job, each with its `share`, all call this.

    Raises:
      EvaluationError: clips of unlike shapes; more videos than `MOST_BAD` allows are unreadable or too short.
    """
    fingerprint, count = footage.fingerprint(), len(footage)
    size = math.ceil(PART / extractor.batch_size) * extractor.batch_size
    mine = range(share.index, count, share.count)
    parts_of_rows = [mine[start : start + size] for start in range(0, len(mine), size)]
    key = (fingerprint, count, size, random_start, seed, share.index, share.count)
    folder = None if cache is None else _folder(cache, extractor, *key)
    parts = [_load(folder, rows.start) for rows in parts_of_rows]
    missing = [rows for rows, part in zip(parts_of_rows, parts) if part is None]
    shapes: dict[tuple[int, ...], str] = {}
    for part in parts:
        if part is not None and len(part.rows):
            shapes.setdefault(part.clip_shape, "an earlier video")
    decoding = _decoded(footage, extractor.protocol, missing, random_start, seed)
    with progress_bar(total=len(mine), desc=title, unit="clip") as bar:
        for place, rows in enumerate(parts_of_rows):
            if parts[place] is not None:
                bar.update(len(rows))
                continue
            part = _compute(decoding, rows, extractor, shapes, bar)
            parts[place] = part
            _save(folder, rows.start, part)
            _check_bad(joined([p for p in parts if p is not None], "").bad, count, title)
    found = [part for part in parts if part is not None]
    whole = joined(found, fingerprint) if share.count == 1 else of_all_processes(found, fingerprint)
    _check_bad(whole.bad, count, title)
    return whole


def joined(parts: Sequence[Features], fingerprint: str) -> Features:
    """All parts as one, in the order of their rows; what was wrong with videos in the order of these sentences, whoever met them."""
    usable, bad = [part for part in parts if len(part.rows)], tuple(sorted(what for part in parts for what in part.bad))
    if not usable:
        return Features(np.empty((0, 0), np.float32), np.empty(0, np.int64), bad, fingerprint, ())
    rows = np.concatenate([part.rows for part in usable])
    order = np.argsort(rows, kind="stable")
    return Features(
        np.concatenate([part.values for part in usable])[order],
        rows[order],
        bad,
        fingerprint,
        usable[0].clip_shape,
    )


def of_all_processes(mine: Sequence[Features], fingerprint: str = "") -> Features:
    """The features that all processes have found, in the order of the videos, as one process would have them. All must call this."""
    whole = joined(mine, fingerprint)
    told = json.dumps([whole.rows.tolist(), whole.bad, whole.clip_shape]).encode()
    shapes: dict[tuple[int, ...], str] = {}
    parts = []
    for process, (values, (rows, bad, shape)) in enumerate(
        zip(exchanged(np.ascontiguousarray(whole.values, "<f4").tobytes()), map(json.loads, exchanged(told)))
    ):
        if rows:
            _check_shape(shapes, tuple(shape), f"process {process}")
        found = np.frombuffer(values, "<f4").reshape(len(rows), -1) if rows else np.empty((0, 0), np.float32)
        parts.append(Features(found, np.array(rows, np.int64), tuple(bad), "", tuple(shape)))
    return joined(parts, fingerprint)


def _check_bad(bad: Sequence[str], count: int, title: str) -> None:
    if len(bad) > max(MOST_BAD * count, 1):
        raise EvaluationError(
            f"{title}: {len(bad)} of {count} videos cannot be used, more than {MOST_BAD:.0%}; the first: {'; '.join(bad[:3])}"
        )


def clip_of(footage: Footage, row: int, protocol: Protocol, random_start: bool, seed: int) -> np.ndarray:
    """The clip of a video that is measured, as it enters the network's program. Raises as `Video.clip`."""
    random, fewest = np.random.default_rng([seed, row]), networks.NETWORKS[protocol.network].fewest_frames
    choose = (lambda places: int(random.integers(places))) if random_start else (lambda places: 0)
    return protocol.prepared(footage.videos[row].clip(protocol.frames, protocol.stride, choose, fewest))


def _decoded(
    footage: Footage, protocol: Protocol, parts: Sequence[range], random_start: bool, seed: int
) -> Iterator[tuple[Video, np.ndarray | Exception]]:
    """The prepared clip of every video of these parts in order, or why there is none; a few are decoded ahead by all cores."""

    rows = iter([row for part in parts for row in part])
    workers = available_cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
        try:
            while True:
                while len(waiting) < 2 * workers + 2 * PER_DEVICE and (row := next(rows, None)) is not None:
                    waiting.append((row, pool.submit(clip_of, footage, row, protocol, random_start, seed)))
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
    rows: Sequence[int],
    extractor: Extractor,
    shapes: dict[tuple[int, ...], str],
    bar: Any,
) -> Features:
    """The next videos, which are these rows. One batch is computed while the next is decoded; the bar counts what is finished."""
    batch: list[np.ndarray] = []
    values: list[np.ndarray] = []
    usable, bad = [], []
    computing: deque[Callable[[], np.ndarray]] = deque()

    def finish(most: int) -> None:
        while len(computing) > most:
            values.append(computing.popleft()())
            bar.update(len(values[-1]))

    for row in rows:
        video, clip = next(decoding)
        if isinstance(clip, Exception):
            bad.append(str(clip))
            bar.update()
            continue
        _check_shape(shapes, clip.shape, video.name)
        usable.append(row)
        batch.append(clip)
        if len(batch) == extractor.batch_size:
            computing.append(extractor(batch))
            batch = []
            finish(most=1)
    if batch:
        computing.append(extractor(batch))
    finish(most=0)
    found = np.concatenate(values) if values else np.empty((0, 0), np.float32)
    return Features(found, np.array(usable, np.int64), tuple(bad), "", next(iter(shapes), ()))


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
        protocol.network,
        protocol.pixels,
    )
    key = json.dumps([2, extractor.checksum, repr(reading), *rest])
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def _load(folder: Path | None, start: int) -> Features | None:
    """A part of an earlier run; one that cannot be read, or that lacks videos, counts as absent."""
    if folder is None:
        return None
    try:
        with np.load(folder / f"{start:08d}.npz", allow_pickle=False) as stored:
            if len(stored["bad"]):  # of a version that kept these
                return None
            shape = tuple(int(side) for side in stored["clip_shape"])
            return Features(stored["values"], stored["rows"], (), "", shape)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(folder: Path | None, start: int, part: Features) -> None:
    if folder is not None and not part.bad:
        with media.atomic_path(folder / f"{start:08d}.npz") as temporary:
            np.savez(
                temporary,
                values=part.values,
                rows=part.rows,
                bad=np.array(part.bad, dtype=str),
                clip_shape=part.clip_shape,
            )
