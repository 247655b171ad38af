"""What two runs left, compared: every array to the bit, the metrics, and the examples that were consumed."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from walt import jsonlines
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
    return {name: array.tobytes() for name, array in arrays(workdir).items()}


def arrays(workdir, step=None):
    """Name → array of the latest (or the given) checkpoint."""
    folder = Path(workdir).resolve() / "checkpoints" / str(latest_step(workdir) if step is None else step)
    found = {}
    for item in ("weights", "training"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            stored = ocp.PyTreeCheckpointHandler().metadata(folder / item).tree
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored
            )  # whatever devices it had
            tree = checkpointer.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            found[f"{item}/{path_name(path)}"] = np.asarray(leaf)
    return found


def distance(ours, theirs):
    """Of the parameters of two checkpoints, as `arrays` gives them: the Euclidean one."""
    names = [name for name in theirs if name.startswith("weights/params")]
    return sum(float(np.sum((ours[name].astype(np.float64) - theirs[name]) ** 2)) for name in names) ** 0.5


def without_times(records):
    """Metrics that do not depend on the speed of the machine."""
    timed = ("seconds", "_per_second")
    return [{k: v for k, v in r.items() if k != "time" and not k.endswith(timed)} for r in records]


def consumed(record):
    """Step → ids of the examples of the global batch, from what `recorder.py` wrote for every process.

    Raises `AssertionError` if a start of the run did not begin at its checkpoint, if it left out or repeated a step, or if a step that was
    drawn again, as those after a checkpoint are by the next start, had other examples.
    """
    rows = {}
    for file in sorted(Path(record).parent.glob(f"{Path(record).name}.*.jsonl")):
        start, due = None, None
        for line in jsonlines.read(file):
            if line["start"] != start:
                start, due = line["start"], line["checkpoint"]
            step = line["step"]
            assert step == due, f"{file.name}: step {step} was drawn where step {due} was due"
            due += 1
            for row, slots in zip(line["rows"], line["ids"], strict=True):
                same = rows.setdefault((step, row), slots) == slots
                assert same, f"a batch drawn again had other examples: {(step, row)}"
    found = {}
    for (step, _), slots in sorted(rows.items()):
        found.setdefault(step, []).append(slots)
    return found


def digest(ids):
    """A checksum of the ids of steps in order."""
    return hashlib.sha256(json.dumps(sorted(ids.items())).encode()).hexdigest()
