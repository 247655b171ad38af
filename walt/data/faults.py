"""Records that cannot be used: counted, listed by id and reason, and too many of them end the run with the list.

    runs/film/skipped_records.0.jsonl     what the loader of process 0 met, one line per record, in the order of steps

A record is listed at the first step whose batch wanted it. So the list is a function of the steps that were trained, whatever was
read ahead, and a run that goes on from a step has the list of a run that was never stopped. The limit is one for all processes
together, however many there are and however often they were started: each counts the records in the lists of all.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging
from etils import epath

from walt import jsonlines
from walt.data.manifest import DatasetError
from walt.data.media import MediaError
from walt.untrusted import field

T = TypeVar("T")

_SHOWN = 20  # records named in an error


class TooManyBadRecordsError(DatasetError):
    """More records than allowed cannot be used; the message lists them."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """An example that a batch wanted and could not have.

    Attributes:
      step, row, slot: its place in the data order, which another example took.
      example: its number in the split; of a still, the number of the still.
      is_image: whether it is a still.
      reason: one sentence.
    """

    step: int
    row: int
    slot: int
    example: int
    is_image: bool
    reason: str

    @property
    def key(self) -> tuple[int, bool]:
        """What names the example."""
        return self.example, self.is_image

    def __str__(self) -> str:
        return f"{'still' if self.is_image else 'example'} {self.example}: {self.reason}"


class FaultLog:
    """The bad records that one process has met, and what the other processes list.

    Args:
      source: what the data set is called in messages.
      limit: how many records may be bad, of those that all processes have met.
      folder: where the lists are kept, which the processes share; None for in memory only.
      process_index, process_count: of the job.

    Attributes:
      bad: the first fault of every bad record that this process has met.
      known: those, and what the other processes had met when this one last looked.
      replaced: places in batches that other examples took, since the start of this process.
    """

    def __init__(
        self,
        source: str,
        limit: int,
        folder: str | os.PathLike | None = None,
        process_index: int = 0,
        process_count: int = 1,
        setting: str = "data.max_bad_records",
    ):
        self.bad: dict[tuple[int, bool], Fault] = {}
        self.known: dict[tuple[int, bool], Fault] = {}
        self.replaced = 0
        self._source, self._limit, self._setting = source, limit, setting
        self._folder = None if folder is None else epath.Path(folder)
        self._index, self._count = process_index, process_count

    def resume(self, step: int) -> None:
        """Takes up the lists of all processes of an earlier start and removes what stands in them from `step` on."""
        if self._folder is None:
            return
        self.bad, self.known = {}, {}
        for path, is_own in self._lists():
            before = [fault for fault in _read(path) if fault.step < step]
            _join(self.known, before)
            if is_own:
                _join(self.bad, before)
                jsonlines.rewrite(path, map(dataclasses.asdict, before))
        if self.known:
            logging.warning("%d records of %s are known to be bad and stay replaced", len(self.known), self._source)

    def add(self, faults: Iterable[Fault]) -> None:
        """Counts the faults of a batch. Raises `TooManyBadRecordsError` if more records than allowed are bad."""
        fresh: dict[tuple[int, bool], Fault] = {}
        for fault in faults:
            self.replaced += 1
            if fault.key not in self.bad:
                fresh.setdefault(fault.key, fault)
        if not fresh:
            return
        self.bad |= fresh
        for fault in fresh.values():
            logging.warning("%s: a record cannot be used: %s", self._source, fault)
        self._append(fresh.values())
        _join(self.known, fresh.values())
        self._look_at_others(max(fault.step for fault in fresh.values()))
        if len(self.known) > self._limit:
            raise TooManyBadRecordsError(
                f"{len(self.known)} records of {self._source} cannot be used, and {self._setting} allows {self._limit}; prepare the "
                f"data set again, or allow more. They are{self.listing()}"
            )

    def listing(self) -> str:
        """The bad records with their reasons, one per line; of many the first."""
        faults = sorted(self.known.values(), key=lambda fault: fault.key)
        lines = [str(fault) for fault in faults[:_SHOWN]]
        if len(faults) > _SHOWN:
            more = f"… and {len(faults) - _SHOWN} more"
            lines.append(more if self._folder is None else f"{more}, all of them in {self._folder / self._names}")
        return "".join(f"\n  {line}" for line in lines)

    @property
    def _path(self) -> epath.Path:
        assert self._folder is not None
        return self._folder / f"skipped_records.{self._index}.jsonl"

    @property
    def _names(self) -> str:
        return f"skipped_records.{self._index if self._count == 1 else '*'}.jsonl"

    def _lists(self) -> Iterator[tuple[epath.Path, bool]]:
        """The lists in the folder, and whether each is this process's: one of them is, and those of a larger job are shared out."""
        assert self._folder is not None
        for path in sorted(self._folder.glob("skipped_records.*.jsonl")):
            number = re.fullmatch(r"skipped_records\.(\d+)\.jsonl", path.name)
            yield path, number is not None and int(number[1]) % self._count == self._index

    def _look_at_others(self, step: int) -> None:
        """Learns what the other processes have met until `step`; what stands after it is left from an earlier start."""
        if self._folder is None or self._count == 1:
            return
        try:
            for path, is_own in self._lists():
                if not is_own:
                    _join(self.known, (fault for fault in _read(path) if fault.step <= step))
        except Exception as error:  # the next fault is another occasion
            logging.warning("lists in %s could not be read: %s", self._folder, error)

    def _append(self, faults: Iterable[Fault]) -> None:
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            jsonlines.append(self._path, map(dataclasses.asdict, faults))
        except Exception as error:
            # A full disk, or a bucket that does not answer: the training may still be able to save itself.
            logging.warning("%s could not be written: %s", self._path, error)


def _join(faults: dict[tuple[int, bool], Fault], more: Iterable[Fault]) -> None:
    for fault in more:
        faults.setdefault(fault.key, fault)


def usable(examples: Iterable[int], read: Callable[[int], T], log: FaultLog) -> Iterator[T]:
    """What `read` makes of examples, without those that it cannot use, which the log counts; for whoever goes through a data set once."""
    for example in examples:
        try:
            value = read(example)
        except (DatasetError, MediaError) as error:
            log.add([Fault(0, 0, 0, example, False, str(error))])
            continue
        yield value


def _read(path: epath.Path) -> Iterator[Fault]:
    """The faults in a list; lines that are not whole, such as an interruption leaves, are passed over."""
    for entry in jsonlines.read(path):
        try:
            numbers = {name: field(entry, name, int) for name in ("step", "row", "slot", "example")}
            fault = Fault(**numbers, is_image=field(entry, "is_image", bool), reason=field(entry, "reason", str))
        except ValueError:
            continue
        yield fault
