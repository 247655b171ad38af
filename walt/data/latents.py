"""What a latents record holds, checked against the manifest of its data set: every example that passes can be trained on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from walt.data.records import DatasetError
from walt.untrusted import typed


@dataclasses.dataclass(frozen=True)
class Latent:
    """One example of stage 2, a video or a still."""

    latents: np.ndarray  # [F,h,w,c] of a video, [h,w,c] of a still
    captions: list[str]
    label: str
    text: Sequence[np.ndarray]  # per caption [L,D]
    text_mask: Sequence[np.ndarray]  # per caption [L]
    low_resolution: np.ndarray  # like `latents`, but smaller; empty where it is not asked for

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = (self.latents, self.low_resolution, *self.text, *self.text_mask)
        return sum(array.nbytes for array in arrays)


@dataclasses.dataclass(frozen=True)
class LatentsFormat:
    """How to read the records of a data set.

    Attributes:
      shapes: of the arrays, from the manifest.
      low_resolution: whether latents at lower resolution are wanted too.
      text_shape: [L, D] of captions that are embedded already; None if those are not wanted.
      classes: the labels that a record may have; empty if they do not matter.
    """

    shapes: Mapping[str, tuple[int, ...]]
    low_resolution: bool
    text_shape: tuple[int, ...] | None
    classes: Mapping[str, int]

    def decode(self, record: dict[str, Any], still: int | None = None) -> Latent:
        """The video of a record, or one of its stills.

        Raises:
          DatasetError: a field is missing, of another type or shape or not finite, or the record has no caption or another class.
        """
        name = "video" if still is None else "images"
        values, small = self._array(record, name), np.zeros(0)
        if self.low_resolution:
            small = self._array(record, f"low_{name}")
        if (
            still is not None
        ):  # a view of one still would keep the bytes of all stills alive, which the cache does not count
            values, small = values[still].copy(), small[still].copy() if self.low_resolution else small
        captions, label = described(record)
        if not captions:
            raise _error(record, "have no caption")
        if self.classes and label not in self.classes:
            raise _error(record, f"have the label {label!r}, which is none of the model's {len(self.classes)} classes")
        return Latent(values, captions, label, *self._text_of(record), small)

    def _array(self, record: dict[str, Any], name: str) -> np.ndarray:
        """Latents of a record, of the shape that the manifest says."""
        data, shape = record_field(record, name, bytes), self.shapes[name]
        if len(data) != 4 * int(np.prod(shape, dtype=object)):
            raise _error(record, f"have {len(data)} bytes in {name!r}, not {shape} floats")
        values = np.frombuffer(data, np.float32).reshape(shape)
        if not np.isfinite(values).all():
            raise _error(record, f"hold infinite values, or some that are no numbers, in {name!r}")
        return values

    def _text_of(self, record: dict[str, Any]) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray]]:
        """The embedded captions of a record and their masks."""
        count = len(record["captions"])
        if self.text_shape is None:
            return [np.zeros(0)] * count, [np.zeros(0)] * count
        text, mask = record_field(record, "text", bytes), record_field(record, "text_mask", bytes)
        length, width = self.text_shape
        if len(mask) != count * length or len(text) != 2 * width * len(mask):
            raise _error(record, f"have {count} captions, and embeddings of another number or shape")
        embedded = np.frombuffer(text, np.float16).reshape(count, length, width)
        if not np.isfinite(embedded).all():
            raise _error(record, "hold infinite values, or some that are no numbers, in 'text'")
        return list(embedded), list(np.frombuffer(mask, np.uint8).reshape(count, length) > 0)


def described(record: dict[str, Any]) -> tuple[list[str], str]:
    """Captions and label of a record of any kind; `DatasetError` if they are no texts."""
    captions = record_field(record, "captions", list)
    try:
        return [typed(caption, str, "a caption") for caption in captions], typed(record.get("label", ""), str, "label")
    except ValueError as error:
        raise DatasetError(f"Record {record.get('id')!r} cannot be used: {error}.") from error


def record_field(record: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a record; `DatasetError` if it is absent or of another kind."""
    if not isinstance(record.get(name), kind):
        raise DatasetError(f"Record {record.get('id')!r} lacks the field {name!r}.")
    return record[name]


def _error(record: dict[str, Any], problem: str) -> DatasetError:
    return DatasetError(f"Latents {record.get('id')!r} {problem}.")
