"""The progress bar of everything that takes a while."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """tqdm's bar with its `options`, redrawn twice a second on a terminal and twice a minute in a log file."""
    return tqdm(iterable, mininterval=0.5 if sys.stderr.isatty() else 30.0, **options)
