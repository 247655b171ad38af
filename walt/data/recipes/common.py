"""What recipes share: arguments that carry their help text, and writing the clips of a source split by split."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from walt.config import ConfigError
from walt.data import media, order, records
from walt.data.bar import progress_bar

Item = TypeVar("Item")

_CLIPS_PER_SHARD = 1024
# What the autoencoders of the shipped configs take: 1 + 4k frames and sides of 8k pixels.
_TIME_FACTOR, _SPACE_FACTOR = 4, 8


def option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a help text; `walt prepare` makes a flag of it, a required one if it has no default.

    The same field as `walt.command.flag` makes (a test holds them together), which this room is too low to import.
    """
    return dataclasses.field(default=default, metadata={"help": help, "positional": False})


def check_positive(config: Any, *fields: str) -> None:
    """Raises ConfigError unless each of the fields is above zero."""
    for field in fields:
        if not getattr(config, field) > 0:
            raise ConfigError(f"{field} must be positive, got {getattr(config, field)}.")


def check_heldout(fraction: float) -> None:
    """Raises ConfigError unless a held-out share leaves something to train on."""
    if not 0.0 <= fraction < 1.0:
        raise ConfigError(f"heldout must lie in [0, 1), got {fraction}.")


def warn_of_sizes(config: Any) -> None:
    """Prints a warning if clips of this size fit no shipped autoencoder; one of other factors may take them."""
    nearest = {"num_frames": 1 + _TIME_FACTOR * ((config.num_frames - 1 + _TIME_FACTOR // 2) // _TIME_FACTOR)}
    for side in ("height", "width"):
        nearest[side] = _SPACE_FACTOR * max(1, (getattr(config, side) + _SPACE_FACTOR // 2) // _SPACE_FACTOR)
    wrong = {field: right for field, right in nearest.items() if getattr(config, field) != right}
    if wrong:
        hints = ", ".join(f"--{field}={right} (not {getattr(config, field)})" for field, right in wrong.items())
        print(
            f"warning: the shipped autoencoders take 1 + {_TIME_FACTOR}k frames and sides that are multiples of "
            f"{_SPACE_FACTOR}; nearest: {hints}."
        )


def split_items(items: Sequence[Item], heldout: float, seed: int) -> dict[str, list[Item]]:
    """Puts a share of the items, chosen by the seed, into "heldout" and the others into "train", in their order.

    At least one item is held out if there are two or more and the share is above zero.
    """
    count = 0
    if heldout and len(items) > 1:
        count = min(len(items) - 1, max(1, round(heldout * len(items))))
    chosen = set(order.permute(np.arange(len(items)), len(items), seed)[:count].tolist()) if count else set()
    return {
        "train": [item for index, item in enumerate(items) if index not in chosen],
        "heldout": [item for index, item in enumerate(items) if index in chosen],
    }


def seed_of(seed: int, name: str) -> int:
    """A seed for one item that does not depend on the other items of the source."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0])


def write_clips(
    directory: Path,
    items: Mapping[str, Sequence[Item]],
    load: Callable[[Item], Iterable[Mapping[str, Any]]],
    *,
    clips_per_item: int = 1,
    skip_bad: bool = False,
) -> tuple[dict[str, records.Split], list[str]]:
    """Writes the records that `load` makes of every item, and returns the splits and the reasons of skipped items.

    A split none of whose items is good is left out.

    Raises:
      media.MediaError: an item is bad and `skip_bad` is off, or no item of the training split was good.
    """
    splits: dict[str, records.Split] = {}
    skipped: list[str] = []
    with progress_bar(total=sum(map(len, items.values())), unit="file", desc="preparing") as bar:
        for split, members in items.items():
            if not members:
                continue
            shards = max(1, -(-len(members) * clips_per_item // _CLIPS_PER_SHARD))
            with records.RecordWriter(directory, split, shards) as writer:
                for item in members:
                    try:
                        clips = list(load(item))  # all clips of an item or none
                    except media.MediaError as error:
                        if not skip_bad:
                            raise
                        skipped.append(str(error))
                        clips = []
                    for record in clips:
                        writer.write(record)
                    bar.update()
                written = writer.close()
            if written.count:
                splits[split] = written
            else:
                for shard in written.shards:
                    (directory / shard.file).unlink()
    for reason in skipped:
        print(f"skipped: {reason}")
    if "train" not in splits:
        count = len(items["train"])
        reason = f"all {count} files to train on are bad, first: {skipped[0]}" if count else "the source is empty."
        raise media.MediaError(f"Nothing to train on: {reason}")
    for split, members in items.items():
        if members and split not in splits:
            print(f"The data set has no split {split!r}: all {len(members)} files chosen for it are bad.")
    return splits, skipped
