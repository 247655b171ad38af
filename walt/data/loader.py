"""Loaders: batches that are a pure function of (seed, step), prefetched by Grain in threads or worker processes.

The global batch of a step is fixed before any process or worker is thought of (`order.py`); a process then takes its
contiguous rows, and Grain only decides who computes a batch ahead of time. So the position in the data *is* the step.

A record that cannot be used is replaced in place by a re-draw that is a function of its place; what was replaced travels with the
batch to the process that trains, which counts and lists it (`faults.py`).
"""

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from jaxtyping import Bool, Int

from walt import children
from walt.config import ConfigError
from walt.data import media, records
from walt.data.cache import Cache
from walt.data.config import LoaderConfig
from walt.data.faults import Fault, FaultLog
from walt.data.latents import Latent, LatentsFormat, record_field
from walt.data.order import Order

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str], int], tuple[Int[np.ndarray, "n l"], Bool[np.ndarray, "n l"]]]

MAX_ATTEMPTS = 16  # bad records in a row before the data set counts as broken
_LAST_STEP = 2**40  # Grain wants an end; nobody gets there

# How Grain says that a worker was killed by a signal. Those of Ctrl-C and of a supervisor are meant for the run, not for the worker.
_KILLED = re.compile(r"Worker process was terminated unexpectedly with exit code -(?!2\b|15\b)(\d+)")


class _Drawn(NamedTuple):
    """A batch, the bad records that others took the place of in it, and the reads that had to be tried again for it."""

    batch: Batch
    faults: list[Fault]
    retries: int


class _Loader:
    """What both loaders share: the order, this process's rows, replacing bad records, caching and prefetch.

    Subclasses set `_order` and implement `_decode(example id, is_image)` and `_assemble(step, faults)`.

    Attributes:
      faults: the bad records that this process has met.
    """

    _order: Order

    def __init__(
        self,
        config: LoaderConfig,
        process_index: int,
        process_count: int,
        workdir: str | os.PathLike | None,
        rows: Sequence[int] | None,
    ):
        if not config.path:
            raise ConfigError("data.path must name a data set made by `walt prepare`.")
        if not 0 <= process_index < process_count:
            raise ConfigError(f"process_index must lie in [0, {process_count}), got {process_index}.")
        if rows is None and config.batch_size % process_count:
            raise ConfigError(
                f"batch_size must be a multiple of the {process_count} processes, got {config.batch_size}."
            )
        self.config = config
        self.faults = FaultLog(
            f"{config.path} ({config.split})", config.max_bad_records, workdir, process_index, process_count
        )
        limit = config.max_example_megabytes * 2**20
        self._source = records.RecordSource(
            config.path, config.split, retry_seconds=config.retry_seconds, max_bytes=limit
        )
        for name, shape in self.manifest.shapes.items():
            if int(np.prod(shape, dtype=object)) * (1 if name == "clip" else 4) > limit:
                raise records.DatasetError(
                    f"{config.path} holds examples of {name} {'x'.join(map(str, shape))}, which are larger than the "
                    f"{config.max_example_megabytes} MB of data.max_example_megabytes."
                )
        local = config.batch_size // process_count
        self._rows = tuple(range(process_index * local, (process_index + 1) * local) if rows is None else rows)
        self._cache = Cache(config.cache_megabytes * 2**20 if config.workers == 0 else 0)
        self._known_bad: dict[tuple[int, bool], str] = {}
        self._retries = self._worker_restarts = 0

    @property
    def manifest(self) -> records.Manifest:
        """The manifest of the data set."""
        return self._source.manifest

    @property
    def counts(self) -> dict[str, float]:
        """Numbers for the log of a run: bad records that this process has met; and since this process began, places that others took, reads that were
        tried again, and workers that were replaced."""
        return {
            "data/bad_records": float(len(self.faults.bad)),
            "data/replaced": float(self.faults.replaced),
            "data/retries": float(self._retries),
            "data/worker_restarts": float(self._worker_restarts),
        }

    def example_ids(self, step: int) -> Int[np.ndarray, "rows slots"]:
        """Example ids of this process's rows at a step, before bad records are replaced (see `Order.example_ids`)."""
        return self._order.example_ids(step)[list(self._rows)]

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of a step."""
        return self._counted(self._draw(step))

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of start_step, start_step + 1, … without end; close the generator to stop the workers.

        Raises:
          TooManyBadRecordsError: more records than `max_bad_records` cannot be used.
          DatasetError: so many re-draws failed that the data set is broken, or workers keep dying.
        """
        self.faults.resume(start_step)
        self._known_bad |= {key: fault.reason for key, fault in self.faults.known.items()}
        step = start_step
        while True:
            try:
                for drawn in self._prefetched(step):
                    step += 1
                    yield self._counted(drawn)
            except RuntimeError as error:
                self._replace_workers(error)

    def _prefetched(self, start_step: int) -> Iterator[_Drawn]:
        import grain  # imports jax, which this module must not do when it is imported

        # Grain reads absl flags in its workers and crashes where no app has parsed any (notebooks, walt.load).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        config = self.config
        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(self._draw)
        dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.prefetch))
        if config.workers:
            options = grain.MultiprocessingOptions(config.workers, config.prefetch)
            dataset = dataset.mp_prefetch(options, functools.partial(_start_worker, os.getpid()))
        iterator = iter(dataset)
        try:
            for drawn in iterator:
                if config.workers:
                    # Workers hand over views of shared memory; a copy lets go of it at once.
                    drawn = drawn._replace(batch={name: np.array(array) for name, array in drawn.batch.items()})
                yield drawn
        finally:
            iterator.close()

    def _replace_workers(self, error: RuntimeError) -> None:
        """Returns if the error is the death of a worker that may be replaced; a batch is a function of its step, so none is lost."""
        killed = _KILLED.search(str(error))
        if killed is None:
            raise error
        reason = f"a loader worker was killed by signal {killed[1]}" + " (out of memory, most likely)" * (
            killed[1] == "9"
        )
        if self._worker_restarts >= self.config.max_worker_restarts:
            raise records.DatasetError(
                f"{reason}, after {self._worker_restarts} others were replaced; allow more with data.max_worker_restarts, or take "
                "fewer workers or a smaller data.prefetch."
            ) from error
        self._worker_restarts += 1
        logging.warning("%s; the workers are started anew", reason)

    def _counted(self, drawn: _Drawn) -> Batch:
        self._retries += drawn.retries
        self.faults.add(drawn.faults)
        return drawn.batch

    def _draw(self, step: int) -> _Drawn:
        faults: list[Fault] = []
        before = self._source.retries
        return _Drawn(self._assemble(step, faults), faults, self._source.retries - before)

    def _assemble(self, step: int, faults: list[Fault]) -> Batch:
        raise NotImplementedError

    def _decode(self, example: int, is_image: bool) -> Any:
        raise NotImplementedError

    def _example(self, step: int, row: int, slot: int, example: int, faults: list[Fault]) -> Any:
        """The decoded example, or the first readable one of the re-draws that take its place; what was bad joins the `faults`."""
        is_image, reason = bool(self._order.is_image[row]), ""
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                example = self._order.redraw(step, row, slot, attempt)
            key = (example, is_image)
            try:
                if key in self._known_bad:
                    raise records.DatasetError(self._known_bad[key])
                return self._cache.get(key, self._decode)
            except (records.DatasetError, media.MediaError) as error:
                reason = self._known_bad[key] = str(error)
                faults.append(Fault(step, row, slot, example, is_image, reason))
        raise records.DatasetError(
            f"{MAX_ATTEMPTS} examples in a row of {self.config.path} ({self.config.split}) cannot be read; prepare it again. "
            f"The last one: {reason}"
        )


def _start_worker(parent: int, index: int, count: int) -> None:
    """What Grain calls in every worker first."""
    children.end_with(parent)


class ClipLoader(_Loader):
    """Batches of stage 1 from clip records: {"video": uint8 [B,T,H,W,3], "row": int32 [B] (global row)}.

    Args:
      config: what to load.
      process_index, process_count: of the job.
      rows: of every global batch, which are this process's; by default its contiguous part.
      workdir: where bad records are listed (see `walt.data.faults`); nowhere if None.

    Raises:
      ConfigError: image rows are asked for, or the batch cannot be shared among the processes.
      DatasetError: the data set is missing, half written or holds no clips.
    """

    def __init__(
        self,
        config: LoaderConfig,
        *,
        process_index: int = 0,
        process_count: int = 1,
        rows: Sequence[int] | None = None,
        workdir: str | os.PathLike | None = None,
    ):
        super().__init__(config, process_index, process_count, workdir, rows)
        if config.image_rows:
            raise ConfigError("image_fraction must be 0 for clips; image rows exist in latents data sets only.")
        if "clip" not in self.manifest.shapes:
            raise records.DatasetError(f"{config.path} holds latents, not clips; stage 1 trains on clips.")
        self._shape = self.manifest.shapes["clip"]
        self._order = Order(config.seed, config.batch_size, num_videos=len(self._source))

    def _assemble(self, step: int, faults: list[Fault]) -> Batch:
        ids = self.example_ids(step)[:, 0]
        video = np.stack([self._example(step, row, 0, int(i), faults) for row, i in zip(self._rows, ids, strict=True)])
        return {"video": video, "row": np.asarray(self._rows, np.int32)}

    def _decode(self, example: int, is_image: bool) -> np.ndarray:
        return media.decode_clip(record_field(self._source[example], "clip", bytes), self._shape)


class LatentLoader(_Loader):
    """Batches of stage 2 from latents records; a row is a video or a stack of F stills of different examples.

    {"latents": float32 [B,F,h,w,c], "is_image": bool [B], "fps": float32 [B], "row": int32 [B]}; with captions
    {"caption_tokens": int32 [B,F,L], "caption_mask": bool [B,F,L], "caption_index": int32 [B,F]}, where the caption of a
    video stands in slot 0 (the other slots are padding) and every frame points to it, and each still of an image row has its
    own; with captions that are embedded already {"text_embeddings": float32 [B,F,L,D]} in place of tokens; with classes
    {"class_label": int32 [B,F]}; for a super-resolution model {"low_resolution": float32 [B,F,i,j,c]}.

    Args:
      config: what to load.
      tokenize: picklable (texts, length) -> (int32 [n,L], bool [n,L]); None for no captions, or for those that `walt prepare
        text` embedded, if the data set has any.
      class_names: the labels of the records in order; empty for no classes.
      low_resolution: whether batches hold the latents of the same clips and stills at lower resolution.
      process_index, process_count: of the job.
      rows: of every global batch, which are this process's; by default its contiguous part.
      workdir: where bad records are listed (see `walt.data.faults`); nowhere if None.

    Raises:
      ConfigError: the batch cannot be shared among the processes.
      DatasetError: the data set is missing, half written, holds no latents, or no stills or lower resolution though that is wanted;
        in a batch, a record without a caption or of another class.
    """

    def __init__(
        self,
        config: LoaderConfig,
        tokenize: Tokenize | None,
        class_names: Sequence[str] = (),
        *,
        low_resolution: bool = False,
        process_index: int = 0,
        process_count: int = 1,
        rows: Sequence[int] | None = None,
        workdir: str | os.PathLike | None = None,
    ):
        super().__init__(config, process_index, process_count, workdir, rows)
        shapes = self.manifest.shapes
        if "video" not in shapes:
            raise records.DatasetError(
                f"{config.path} holds no latents but {sorted(shapes)}; use `walt prepare latents`."
            )
        self._video_shape = shapes["video"]
        self._images_shape = shapes.get("images", (0,))
        if config.image_rows and not self._images_shape[0]:
            raise records.DatasetError(f"{config.path} holds no stills, so image_fraction must be 0.")
        if low_resolution and "low_video" not in shapes:
            raise records.DatasetError(
                f"{config.path} holds latents of one resolution only; a super-resolution model needs `walt prepare latents --low_resolution=2`."
            )
        self._low_resolution = low_resolution
        self._tokenize = tokenize
        self._text_shape = shapes.get("text") if tokenize is None else None
        self._classes = {name: number for number, name in enumerate(class_names)}
        self._format = LatentsFormat(shapes, low_resolution, self._text_shape, self._classes)
        self._order = Order(
            config.seed,
            config.batch_size,
            num_videos=len(self._source),
            image_rows=config.image_rows,
            num_images=len(self._source) * self._images_shape[0],
            slots=self._video_shape[0],
        )

    def _assemble(self, step: int, faults: list[Fault]) -> Batch:
        ids = self.example_ids(step)
        rows, (frames, length) = len(ids), (self._video_shape[0], self.config.caption_length)
        is_image = self._order.is_image[list(self._rows)]
        latents = np.empty((rows, *self._video_shape), np.float32)
        small = np.empty((rows, *self.manifest.shapes["low_video"]) if self._low_resolution else 0, np.float32)
        used, texts, embedded, classes = ids >= 0, [], [], np.zeros((rows, frames), np.int32)
        for local, slot in np.argwhere(used):
            row = self._rows[local]
            example = self._example(step, row, int(slot), int(ids[local, slot]), faults)
            filled = slot if is_image[local] else slice(None)
            latents[local, filled] = example.latents
            if self._low_resolution:
                small[local, filled] = example.low_resolution
            caption = self._order.caption(step, row, int(slot), len(example.captions))
            texts.append(example.captions[caption])
            embedded.append((local, slot, example.text[caption], example.text_mask[caption]))
            if self._classes:
                classes[local, filled] = self._classes[example.label]
        batch = {
            "latents": latents,
            "is_image": is_image.copy(),
            "fps": np.full(rows, self.manifest.fps, np.float32),
            "row": np.asarray(self._rows, np.int32),
        }
        if self._classes:
            batch["class_label"] = classes
        if self._low_resolution:
            batch["low_resolution"] = small
        index = np.where(is_image[:, None], np.arange(frames), 0).astype(np.int32)
        if self._text_shape is not None:
            embeddings = np.zeros((rows, frames, *self._text_shape), np.float32)
            mask = np.zeros((rows, frames, self._text_shape[0]), bool)
            for local, slot, text, real in embedded:
                embeddings[local, slot], mask[local, slot] = text, real
            batch |= {"text_embeddings": embeddings, "caption_mask": mask, "caption_index": index}
        if self._tokenize is not None:
            tokens = np.zeros((rows, frames, length), np.int32)
            mask = np.zeros((rows, frames, length), bool)
            tokens[used], mask[used] = self._tokenize(texts, length)
            batch |= {"caption_tokens": tokens, "caption_mask": mask, "caption_index": index}
        return batch

    def _decode(self, example: int, is_image: bool) -> Latent:
        # Image ids number the stills of all records: record after record, still after still.
        index, still = divmod(example, self._images_shape[0]) if is_image else (example, None)
        return self._format.decode(self._source[index], still)
