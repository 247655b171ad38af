"""The notice that a virtual machine of Google's gives half a minute before it is taken away: `instance/preempted` of its metadata."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

PRODUCT = Path("/sys/class/dmi/id/product_name")
QUESTION = "http://{host}/computeMetadata/v1/instance/preempted?wait_for_change={wait}&timeout_sec={seconds}"
UNKNOWN = "unknown"
ANSWER_SECONDS = 60  # the longest that a question stays open


def wait(told: Callable[[], object], pause_seconds: float = 10.0) -> None:
    """Calls `told` when this machine is about to be taken away. Returns then, and at once where there is no such notice to be had."""
    host, changes = _host(), False  # the first question is about now, the others about what changes
    while host is not None:
        answer = _answer(QUESTION.format(host=host, wait=str(changes).lower(), seconds=ANSWER_SECONDS))
        if answer == "TRUE":
            told()
        if answer in ("TRUE", UNKNOWN):
            return
        if answer is None:
            time.sleep(pause_seconds)
        else:
            changes = True


def _host() -> str | None:
    """Where this machine asks for its metadata; None outside of Google Cloud."""
    named = os.environ.get("GCE_METADATA_HOST")
    try:
        return named or ("metadata.google.internal" if PRODUCT.read_text().startswith("Google") else None)
    except OSError:
        return None


def _answer(question: str) -> str | None:
    """What the metadata say; None if they say nothing for the moment, `UNKNOWN` if they never will."""
    import http.client  # takes a tenth of a second, which a program that has not read signals yet does not have
    import urllib.error
    import urllib.request

    request = urllib.request.Request(question, headers={"Metadata-Flavor": "Google"})
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy answers for this machine
    try:
        with directly.open(request, timeout=2 * ANSWER_SECONDS) as answer:
            return answer.read(64).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        logging.info("no notice of preemptions: %s", error)
        return UNKNOWN if error.code in (403, 404) else None
    except (OSError, http.client.HTTPException):
        return None
