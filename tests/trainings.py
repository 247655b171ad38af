"""What two runs left, compared: every array to the bit, the metrics, and the examples that were consumed."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from walt.parallel.rules import path_name
from walt.training.folder import latest_step
from walt.training.metrics import read_metrics


def assert_same_runs(ours, theirs):
    """The latest checkpoints, to the bit, and the metrics."""
    assert latest_step(ours) == latest_step(theirs)
    assert differing(ours, theirs) == []
    assert without_times(read_metrics(ours)) == without_times(read_metrics(theirs))


def differing(ours, theirs):
    """Names of the arrays of the latest checkpoints that differ in a bit."""
    a, b = everything(ours), everything(theirs)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def everything(workdir):
    """Name → bytes of all arrays of the latest checkpoint: weights, averages, optimiser, step and key."""
    folder = Path(workdir).resolve() / "checkpoints" / str(latest_step(workdir))
    arrays = {}
    for item in ("weights", "training"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.restore(folder / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            arrays[f"{item}/{path_name(path)}"] = np.asarray(leaf).tobytes()
    return arrays


def without_times(records):
    """Metrics that do not depend on the speed of the machine."""
    timed = ("seconds", "_per_second")
    return [{k: v for k, v in r.items() if k != "time" and not k.endswith(timed)} for r in records]


def consumed(record):
    """Step → ids of the examples of the global batch, from what `recorder.py` wrote for every process. Steps that were drawn again after
    a fault must have had the same examples.
    """
    rows = {}
    for file in sorted(Path(record).parent.glob(f"{Path(record).name}.*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                step, places, ids = json.loads(line)
            except ValueError:  # cut short by a fault
                continue
            for row, slots in zip(places, ids, strict=True):
                assert rows.setdefault((step, row), slots) == slots, (step, row)
    found = {}
    for (step, _), slots in sorted(rows.items()):
        found.setdefault(step, []).append(slots)
    return found


def digest(ids):
    """A checksum of the ids of steps in order."""
    return hashlib.sha256(json.dumps(sorted(ids.items())).encode()).hexdigest()
