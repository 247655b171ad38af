"""`walt train` that writes down which examples it consumes, and breaks where files tell it to.

    python tests/recorder.py RECORD --config=... --workdir=...

RECORD.<process>.jsonl gets a line for every batch that is drawn: which start of the run drew it and the checkpoint that start had, the step,
the rows, and the ids, with those that took the place of bad records; drawing takes RECORDER_SECONDS. While RECORD.unreadable is there,
every read of a shard fails; while RECORD.full is there, every checkpoint meets a full disk. RECORD.met says when a read failed so, and
when a checkpoint could not be written for want of space, whether by such a file or on a disk that is full.
"""

import errno
import os
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from orbax.checkpoint._src.path import atomicity

from walt import command, jsonlines, train
from walt.data import loader, records
from walt.training import checkpoint
from walt.training.folder import latest_step

SECONDS = float(os.environ.get("RECORDER_SECONDS", "0"))


def main(record, argv):
    record_batches(record)
    met = Path(f"{record}.met")
    break_reads(Path(f"{record}.unreadable"), met)
    break_saves(Path(f"{record}.full"))
    record_full_disks(met)
    command.run(train.main, [train.__name__, *argv])


def record_batches(record):
    batches, counted = loader._Loader.batches, loader._Loader._counted
    start = {"start": 0, "checkpoint": 0, "next": None}

    def recorded_counted(self, drawn):
        self.recorded_faults = drawn.faults
        return counted(self, drawn)

    def recorded_batches(self, start_step=0):
        with closing(batches(self, start_step)) as drawn:
            workdir = self.faults._folder  # that of training; evaluations have none
            if workdir is not None and start_step != start["next"]:  # else only the loader was started anew
                start.update(start=time.time_ns(), checkpoint=latest_step(workdir) or 0)
            for step, batch in enumerate(drawn, start_step):
                if workdir is not None:
                    import jax

                    time.sleep(SECONDS)
                    entry = {"step": step, "rows": batch["row"].tolist(), "ids": used(self, step)}
                    which = {name: start[name] for name in ("start", "checkpoint")}
                    jsonlines.append(f"{record}.{jax.process_index()}.jsonl", [which | entry])
                    start["next"] = step + 1
                yield batch

    loader._Loader._counted, loader._Loader.batches = recorded_counted, recorded_batches


def used(self, step):
    """The ids of a batch, bad records replaced."""
    ids = self.example_ids(step).tolist()
    for (row, slot), attempts in Counter((fault.row, fault.slot) for fault in self.recorded_faults).items():
        ids[self._rows.index(row)][slot] = int(self._order.redraw(step, row, slot, attempts))
    return ids


def break_reads(flag, met):
    read = records._ShardReader.read

    def broken(self, position):
        if flag.exists():
            jsonlines.append(met, [{"kind": "unreadable", "time": time.time()}])
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, position)

    records._ShardReader.read = broken


def break_saves(flag):
    finalize = atomicity.AtomicRenameTemporaryPath.finalize

    async def broken(self):
        if flag.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return await finalize(self)

    atomicity.AtomicRenameTemporaryPath.finalize = broken


def record_full_disks(met):
    failed = checkpoint.Checkpoints._failed

    def recorded(self, error):
        if checkpoint.is_disk_full(error):
            jsonlines.append(met, [{"kind": "full disk", "time": time.time()}])
        return failed(self, error)

    checkpoint.Checkpoints._failed = recorded


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
