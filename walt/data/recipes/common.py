"""What recipes share: arguments that carry their help text, and writing the clips of a source split by split."""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from walt.config import ConfigError
from walt.data import media, order, records

Item = TypeVar("Item")

_CLIPS_PER_SHARD = 1024


def option(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with a help text; `walt prepare` makes a flag of it, a required one if it has no default."""
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

    Raises:
      media.MediaError: an item is bad and `skip_bad` is off, or no item of the training split was good.
    """
    splits: dict[str, records.Split] = {}
    skipped: list[str] = []
    with tqdm(total=sum(map(len, items.values())), unit="file", desc="preparing") as bar:
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
                splits[split] = writer.close()
    for reason in skipped:
        print(f"skipped: {reason}")
    if not splits["train"].count:
        raise media.MediaError(
            f"Nothing to train on: all {len(skipped)} files of the source are bad, first: {skipped[0]}"
        )
    return splits, skipped
