"""`walt train` that writes down which examples it consumes, and breaks where files tell it to.

    python tests/recorder.py RECORD --config=... --workdir=...

RECORD.<process>.jsonl gets a line [step, rows, ids] for every batch that is drawn, with the ids of those that took the place of bad
records; drawing takes RECORDER_SECONDS. While RECORD.unreadable is there, every read of a shard fails; while RECORD.full is there, every
checkpoint meets a full disk.
"""

import errno
import json
import os
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from orbax.checkpoint._src.path import atomicity

from walt import command, train
from walt.data import loader, records

SECONDS = float(os.environ.get("RECORDER_SECONDS", "0"))


def main(record, argv):
    record_batches(record)
    break_reads(Path(f"{record}.unreadable"))
    break_saves(Path(f"{record}.full"))
    command.run(train.main, [train.__name__, *argv])


def record_batches(record):
    batches, counted = loader._Loader.batches, loader._Loader._counted

    def recorded_counted(self, drawn):
        self.recorded_faults = drawn.faults
        return counted(self, drawn)

    def recorded_batches(self, start_step=0):
        with closing(batches(self, start_step)) as drawn:
            for step, batch in enumerate(drawn, start_step):
                if self.faults._folder is not None:  # that of training, not of evaluations
                    import jax

                    time.sleep(SECONDS)

                    with open(f"{record}.{jax.process_index()}.jsonl", "a") as file:
                        file.write(json.dumps([step, batch["row"].tolist(), used(self, step)]) + "\n")
                yield batch

    loader._Loader._counted, loader._Loader.batches = recorded_counted, recorded_batches


def used(self, step):
    """The ids of a batch, bad records replaced."""
    ids = self.example_ids(step).tolist()
    for (row, slot), attempts in Counter((fault.row, fault.slot) for fault in self.recorded_faults).items():
        ids[self._rows.index(row)][slot] = int(self._order.redraw(step, row, slot, attempts))
    return ids


def break_reads(flag):
    read = records._ShardReader.read

    def broken(self, position):
        if flag.exists():
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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
