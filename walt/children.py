"""Processes that this one has started do not outlive it, however it ends: they would keep its host, its memory and its devices busy."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time

POLL_SECONDS = 1.0


def kill_children() -> None:
    """Before an end at once (`os._exit`), at which Python ends none of them."""
    with contextlib.suppress(Exception):  # whatever it is, the end follows
        for child in multiprocessing.active_children():
            child.kill()


def end_with(parent: int) -> None:
    """In a child: from here on it ends when `parent`, the process that has started it, is gone, be it by a signal that no process sees."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="watch over the parent", daemon=True).start()
