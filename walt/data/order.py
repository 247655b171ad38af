"""The order of examples: a pure function (seed, step, global row, slot) -> example id.

Nothing here knows of processes, workers or files, so neither can change what a batch holds. The shuffle is a keyed
permutation that is computed per index instead of stored, so it costs no memory however large the data set is.
"""

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

# Numbers that keep the random streams of one seed apart; changing one changes every data order.
VIDEO, IMAGE, REDRAW, CAPTION = 1, 2, 3, 4

_ROUNDS = 6


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up the global batch of every step.

    Attributes:
      seed: of the whole order.
      batch_size: rows of a global batch.
      num_videos: video examples in the data set.
      image_rows: how many rows of a batch are stacks of images; they are spread evenly over the rows.
      num_images: image examples in the data set.
      slots: images in a row.
    """

    seed: int
    batch_size: int
    num_videos: int
    image_rows: int = 0
    num_images: int = 0
    slots: int = 1

    @cached_property
    def is_image(self) -> Bool[np.ndarray, " batch"]:
        """Which rows of every batch are stacks of images."""
        filled = np.arange(self.batch_size + 1) * self.image_rows // self.batch_size
        return np.diff(filled) > 0

    def example_ids(self, step: int) -> Int[np.ndarray, "batch slots"]:
        """Example ids of the batch of a step: a video row has a video id in slot 0 and -1 elsewhere, an image row
        has an image id in every slot. Both streams go through all examples before repeating any."""
        ids = np.full((self.batch_size, self.slots), -1, np.int64)
        videos = self.batch_size - self.image_rows
        if videos:
            positions = step * videos + np.arange(videos)
            ids[~self.is_image, 0] = shuffled(positions, self.num_videos, self.seed, VIDEO)
        if self.image_rows:
            images = self.image_rows * self.slots
            positions = step * images + np.arange(images)
            ids[self.is_image] = shuffled(positions, self.num_images, self.seed, IMAGE).reshape(-1, self.slots)
        return ids

    def redraw(self, step: int, row: int, slot: int, attempt: int) -> int:
        """The example that takes the place of one that cannot be read."""
        count = self.num_images if self.is_image[row] else self.num_videos
        return draw(count, self.seed, REDRAW, step, row, slot, attempt)

    def caption(self, step: int, row: int, slot: int, count: int) -> int:
        """Which of an example's `count` captions is used."""
        return draw(count, self.seed, CAPTION, step, row, slot)


def draw(count: int, *key: int) -> int:
    """A random number below `count` that is a function of the key alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] % np.uint64(count))


def shuffled(positions: Int[np.ndarray, " n"], count: int, *key: int) -> Int[np.ndarray, " n"]:
    """Examples at positions of an endless sequence that holds every one of `count` examples once per epoch, each
    epoch in an order of its own."""
    epochs, offsets = np.divmod(np.asarray(positions, np.int64), count)
    ids = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        ids[chosen] = permute(offsets[chosen], count, *key, int(epoch))
    return ids


def permute(indices: Int[np.ndarray, " n"], count: int, *key: int) -> Int[np.ndarray, " n"]:
    """Images of indices under a permutation of range(count) chosen by the key.

    A Feistel network permutes the numbers of an even number of bits; images outside the range are permuted again until
    they fall inside ("cycle walking", Black and Rogaway 2002), which keeps it a permutation of the range.
    """
    half = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
    values = np.asarray(indices).astype(np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _feistel(values[outside], keys, np.uint64(half))
        outside = values >= count
    return values.astype(np.int64)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
