"""The notebook of all tasks runs from its first cell to its last on the shipped model, with four steps."""

from __future__ import annotations

import json
import os

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.mark.slow
def test_runs_to_the_end_and_shows_every_task(root, tmp_path):
    environment = {
        **os.environ,
        "WALT_STEPS": json.dumps(4),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        # One device, as on a reader's machine: the suite's eight want batches of eight.
        "XLA_FLAGS": " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag),
    }
    book = nbformat.read(root / "notebooks" / "generate_and_edit.ipynb", as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells), "committed without outputs"
    code = "\n".join(cell.source for cell in cells)
    tasks = "animate keyframes predict extend connect loop edit vary inpaint outpaint interpolate stream storyboard generate"
    assert all(f"pipeline.{task}(" in code for task in tasks.split())
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)
    shown = [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]
    assert shown.count("image/gif") == code.count("show(") - 1
