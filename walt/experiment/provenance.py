"""Where a run comes from: commit, packages and machine, written into its work directory when it begins, since later nobody
can tell."""

from __future__ import annotations

import json
from typing import Any

import jax
from etils import epath

from walt.evaluation import describe_environment
from walt.experiment.progress import write_json

FILE = "environment.json"


def record_environment(workdir: epath.PathLike) -> None:
    """Writes what the first process of a run that begins now runs on."""
    if jax.process_index() == 0:
        epath.Path(workdir).mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(workdir) / FILE, describe_environment())


def environment_of(workdir: epath.PathLike) -> dict[str, Any]:
    """What was written when the run began; empty for a run that is older than this record."""
    file = epath.Path(workdir) / FILE
    return json.loads(file.read_text()) if file.exists() else {}
