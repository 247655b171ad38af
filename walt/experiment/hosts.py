"""What each host of a job loads."""

from __future__ import annotations

from typing import Any

import jax

from walt.experiment.config import ExperimentConfig
from walt.parallel.mesh import make_mesh, rows_of_process


def share_of_host(experiment: ExperimentConfig) -> dict[str, Any]:
    """Arguments of a loader: which process this is, and which rows of every batch its devices hold."""
    alone = jax.process_count() == 1
    rows = None if alone else rows_of_process(experiment.data.batch_size, make_mesh(experiment.training.mesh))
    return {"process_index": jax.process_index(), "process_count": jax.process_count(), "rows": rows}
