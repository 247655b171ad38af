"""Loaders: batches that are a pure function of (seed, step), prefetched by Grain in threads or worker processes.

The global batch of a step is fixed before any process or worker is thought of (`order.py`); a process then takes its
contiguous rows, and Grain only decides who computes a batch ahead of time. So the position in the data *is* the step.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from jaxtyping import Bool, Int

from walt.config import ConfigError
from walt.data import media, records
from walt.data.order import Order

Batch = dict[str, np.ndarray]
Tokenize = Callable[[list[str], int], tuple[Int[np.ndarray, "n l"], Bool[np.ndarray, "n l"]]]

MAX_ATTEMPTS = 16  # bad records in a row before the data set counts as broken
_LAST_STEP = 2**40  # Grain wants an end; nobody gets there


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """What to load and how.

    Attributes:
      path: a folder made by `walt prepare`.
      split: "train" or "heldout".
      batch_size: rows of a global batch, that is, of one step of all processes together.
      seed: of the order of examples and the choice of captions.
      image_fraction: share of the rows of every batch that are stacks of independent stills (latents only), rounded to
        whole rows.
      workers: loader processes; 0 reads in threads, which is faster for small data sets.
      prefetch: batches prepared ahead (by every worker).
      caption_length: tokens of a caption, longer ones are cut.
      cache_megabytes: decoded examples kept in memory up to this much; used without workers only.
    """

    path: str = ""
    split: str = "train"
    batch_size: int = 16
    seed: int = 0
    image_fraction: float = 0.0
    workers: int = 0
    prefetch: int = 2
    caption_length: int = 24
    cache_megabytes: int = 512

    def __post_init__(self) -> None:
        for field, low in (("batch_size", 1), ("prefetch", 1), ("caption_length", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field} must be at least {low}, got {getattr(self, field)}.")
        for field in ("seed", "workers", "cache_megabytes"):
            if getattr(self, field) < 0:
                raise ConfigError(f"{field} must not be negative, got {getattr(self, field)}.")
        if not 0.0 <= self.image_fraction <= 1.0:
            raise ConfigError(f"image_fraction must lie between 0 and 1, got {self.image_fraction}.")
        # Rounding to whole rows must not turn a mixture into videos or stills alone.
        if 0.0 < self.image_fraction < 1.0 and self.image_rows in (0, self.batch_size):
            least, most = 1 / self.batch_size, 1 - 1 / self.batch_size
            between = (
                f", or between {least:.4g} and {most:.4g}"
                if least < most
                else f", or {most:.4g}"
                if least == most
                else ", or batch_size larger"
            )
            raise ConfigError(
                f"image_fraction {self.image_fraction:g} makes {self.image_rows} of the {self.batch_size} rows of a batch "
                f"stills; it must be 0 or 1{between}."
            )

    @property
    def image_rows(self) -> int:
        """How many rows of a global batch are stacks of images."""
        return round(self.batch_size * self.image_fraction)


class _Loader:
    """What both loaders share: the order, this process's rows, replacing bad records, caching and prefetch.

    Subclasses set `_order` and implement `_decode(example id, is_image)` and `batch(step)`.
    """

    _order: Order

    def __init__(self, config: LoaderConfig, process_index: int, process_count: int):
        if not config.path:
            raise ConfigError("data.path must name a data set made by `walt prepare`.")
        if not 0 <= process_index < process_count:
            raise ConfigError(f"process_index must lie in [0, {process_count}), got {process_index}.")
        if config.batch_size % process_count:
            raise ConfigError(
                f"batch_size must be a multiple of the {process_count} processes, got {config.batch_size}."
            )
        self.config = config
        self._source = records.RecordSource(config.path, config.split)
        local = config.batch_size // process_count
        self._rows = range(process_index * local, (process_index + 1) * local)
        self._cache = _Cache(config.cache_megabytes * 2**20 if config.workers == 0 else 0)
        self._known_bad: set[tuple[int, bool]] = set()

    @property
    def manifest(self) -> records.Manifest:
        """The manifest of the data set."""
        return self._source.manifest

    def example_ids(self, step: int) -> Int[np.ndarray, "rows slots"]:
        """Example ids of this process's rows at a step, before bad records are replaced (see `Order.example_ids`)."""
        return self._order.example_ids(step)[self._rows.start : self._rows.stop]

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of a step."""
        raise NotImplementedError

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches of start_step, start_step + 1, … without end; close the generator to stop the workers."""
        import grain  # imports jax, which this module must not do when it is imported

        # Grain reads absl flags in its workers and crashes where no app has parsed any (notebooks, walt.load).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        config = self.config
        steps = grain.MapDataset.range(start_step, _LAST_STEP).map(self.batch)
        dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.prefetch))
        if config.workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(config.workers, config.prefetch))
        iterator = iter(dataset)
        try:
            for batch in iterator:
                # Workers hand over views of shared memory; a copy lets go of it at once.
                yield {name: np.array(array) for name, array in batch.items()} if config.workers else batch
        finally:
            iterator.close()

    def _decode(self, example: int, is_image: bool) -> Any:
        raise NotImplementedError

    def _example(self, step: int, row: int, slot: int, example: int) -> Any:
        """The decoded example, or the first readable one of the re-draws that take its place."""
        is_image = bool(self._order.is_image[row])
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                example = self._order.redraw(step, row, slot, attempt)
            try:
                return self._cache.get((example, is_image), self._decode)
            except (records.DatasetError, media.MediaError) as error:
                if (example, is_image) not in self._known_bad:
                    self._known_bad.add((example, is_image))
                    logging.warning("Example %d is replaced by another: %s", example, error)
        raise records.DatasetError(
            f"{MAX_ATTEMPTS} examples in a row of {self.config.path} ({self.config.split}) cannot be read; prepare it again."
        )


class ClipLoader(_Loader):
    """Batches of stage 1 from clip records: {"video": uint8 [B,T,H,W,3], "row": int32 [B] (global row)}.

    Args:
      config: what to load.
      process_index, process_count: which contiguous part of every global batch is this process's.

    Raises:
      ConfigError: image rows are asked for, or the batch cannot be shared among the processes.
      DatasetError: the data set is missing, half written or holds no clips.
    """

    def __init__(self, config: LoaderConfig, *, process_index: int = 0, process_count: int = 1):
        super().__init__(config, process_index, process_count)
        if config.image_rows:
            raise ConfigError("image_fraction must be 0 for clips; image rows exist in latents data sets only.")
        if "clip" not in self.manifest.shapes:
            raise records.DatasetError(f"{config.path} holds latents, not clips; stage 1 trains on clips.")
        self._shape = self.manifest.shapes["clip"]
        self._order = Order(config.seed, config.batch_size, num_videos=len(self._source))

    def batch(self, step: int) -> Batch:
        ids = self.example_ids(step)[:, 0]
        video = np.stack([self._example(step, row, 0, int(i)) for row, i in zip(self._rows, ids, strict=True)])
        return {"video": video, "row": np.asarray(self._rows, np.int32)}

    def _decode(self, example: int, is_image: bool) -> np.ndarray:
        record = self._source[example]
        clip = media.decode_clip(_field(record, "clip", bytes))
        if clip.shape != self._shape:
            raise records.DatasetError(f"Clip {record.get('id')!r} has shape {clip.shape}, not {self._shape}.")
        return clip


@dataclasses.dataclass(frozen=True)
class _Latent:
    latents: np.ndarray  # [F,h,w,c] of a video, [h,w,c] of a still
    captions: list[str]
    label: str
    text: Sequence[np.ndarray]  # per caption [L,D]
    text_mask: Sequence[np.ndarray]  # per caption [L]
    low_resolution: np.ndarray  # like `latents`, but smaller; empty where it is not asked for

    @property
    def nbytes(self) -> int:
        arrays = (self.latents, self.low_resolution, *self.text, *self.text_mask)
        return sum(array.nbytes for array in arrays)


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
      process_index, process_count: which contiguous part of every global batch is this process's.

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
    ):
        super().__init__(config, process_index, process_count)
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
        self._order = Order(
            config.seed,
            config.batch_size,
            num_videos=len(self._source),
            image_rows=config.image_rows,
            num_images=len(self._source) * self._images_shape[0],
            slots=self._video_shape[0],
        )

    def batch(self, step: int) -> Batch:
        ids = self.example_ids(step)
        rows, (frames, length) = len(ids), (self._video_shape[0], self.config.caption_length)
        is_image = self._order.is_image[self._rows.start : self._rows.stop]
        latents = np.empty((rows, *self._video_shape), np.float32)
        small = np.empty((rows, *self.manifest.shapes["low_video"]) if self._low_resolution else 0, np.float32)
        used, texts, embedded, classes = ids >= 0, [], [], np.zeros((rows, frames), np.int32)
        for local, slot in np.argwhere(used):
            row = self._rows[local]
            example = self._example(step, row, int(slot), int(ids[local, slot]))
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

    def _decode(self, example: int, is_image: bool) -> _Latent:
        # Image ids number the stills of all records: record after record, still after still.
        index, still = divmod(example, self._images_shape[0]) if is_image else (example, 0)
        record = self._source[index]
        name = "images" if is_image else "video"
        values, small = self._array(record, name), np.zeros(0)
        if self._low_resolution:
            small = self._array(record, f"low_{name}")
        if is_image:  # a view of one still would keep the bytes of all stills alive, which the cache does not count
            values, small = values[still].copy(), small[still].copy() if self._low_resolution else small
        captions = _field(record, "captions", list)
        if not captions:
            raise records.DatasetError(f"Latents {record.get('id')!r} have no caption.")
        label = record.get("label", "")
        if self._classes and label not in self._classes:
            raise records.DatasetError(
                f"Latents {record.get('id')!r} have the label {label!r}, which is none of the model's {len(self._classes)} classes."
            )
        return _Latent(values, captions, label, *self._text_of(record), small)

    def _array(self, record: dict[str, Any], name: str) -> np.ndarray:
        """Latents of a record, of the shape that the manifest says."""
        data, shape = _field(record, name, bytes), self.manifest.shapes[name]
        if len(data) != 4 * int(np.prod(shape)):
            raise records.DatasetError(
                f"Latents {record.get('id')!r} have {len(data)} bytes in {name!r}, not {shape} floats."
            )
        return np.frombuffer(data, np.float32).reshape(shape)

    def _text_of(self, record: dict[str, Any]) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
        """The embedded captions of a record and their masks."""
        count = len(record["captions"])
        if self._text_shape is None:
            return [np.zeros(0)] * count, [np.zeros(0)] * count
        length, width = self._text_shape
        text = _rows(_field(record, "text", bytes), np.float16, (length, width))
        mask = _rows(_field(record, "text_mask", bytes), bool, (length,))
        if not len(text) == len(mask) == count:
            raise records.DatasetError(
                f"Latents {record.get('id')!r} have {count} captions, of which {len(text)} are embedded."
            )
        return list(text), list(mask)


def _rows(data: bytes, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(-1, *shape)


def _field(record: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(record.get(name), kind):
        raise records.DatasetError(f"Record {record.get('id')!r} lacks the field {name!r}.")
    return record[name]


class _Cache:
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
        return _Cache, (self._limit,)
