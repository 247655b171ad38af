"""The notebook runs from its first cell to its last, with settings so small that only the path is tested."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient

import walt
import walt.config
from walt.data import media

SETTINGS = {
    "GAMES": ["freeway", "boxing"],
    "CLIPS": 4,
    "HELDOUT": 2,
    "SHIPPED_MODEL": "",
    "AUTOENCODER_STEPS": 2,
    "TRANSFORMER_STEPS": 2,
    "AUTOENCODER_OVERRIDES": {
        "data.batch_size": 2,
        "heldout_every": 2,
        "autoencoder.base_channels": 8,
        "autoencoder.channel_multipliers": "1,1",
        "autoencoder.strides": "((4, 2),)",
        "autoencoder.temporal_kernels": "1,3",
        "autoencoder.mid_blocks": 0,
    },
    "TRANSFORMER_OVERRIDES": {
        "data.batch_size": 4,
        "heldout_every": 2,
        "transformer.width": 16,
        "transformer.heads": 2,
        "transformer.depth": 2,
        "transformer.text_width": 16,
        "text.width": 16,
        "text.head_width": 8,
        "text.heads": 2,
        "text.mlp_width": 16,
        "sampler.steps": 2,
    },
}


def notebook(root: Path) -> nbformat.NotebookNode:
    return nbformat.read(root / "notebooks" / "quickstart.ipynb", as_version=4)


def test_runs_to_the_end_and_shows_videos(root, tmp_path):
    environment = {
        **os.environ,
        **{f"WALT_{name}": json.dumps(value) for name, value in SETTINGS.items()},
        "WALT_FOLDER": json.dumps(str(tmp_path / "run")),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        # One device, as on a reader's machine: the suite's eight want batches of eight.
        "XLA_FLAGS": " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag),
    }
    book = notebook(root)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)

    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/gif") == 3 and shown.count("image/png") == 2, "three rows of videos, two curves"
    video, _ = media.read_video(tmp_path / "run" / "generated.gif")
    assert video.shape == (17, 3 * 64, 2 * 3 * 64, 3) and video.dtype == np.uint8
    assert (tmp_path / "run" / "contact_sheet.png").is_file()


def test_is_committed_without_outputs(root):
    cells = [cell for cell in notebook(root).cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_cells_use_what_the_package_has(root):
    """Every name that a cell imports from walt, and every attribute it takes from such a module, exists."""
    code = "\n".join(cell.source for cell in notebook(root).cells if cell.cell_type == "code")
    tree = ast.parse(code)
    names: dict[str, object] = {"walt": walt}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "walt":
            for alias in node.names:
                if importlib.util.find_spec(node.module).submodule_search_locations is not None:
                    with contextlib.suppress(ModuleNotFoundError):
                        importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.name] = getattr(importlib.import_module(node.module), alias.name)
    taken = [
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
    ]
    assert ("walt", "load") in taken and ("atari", "prepare") in taken and ("experiment", "train") in taken
    for name, attribute in taken:
        assert hasattr(names[name], attribute), f"{name}.{attribute}"
