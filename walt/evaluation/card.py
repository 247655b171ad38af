"""Protocol cards: all that a figure depends on besides the generated videos, and which figures may stand beside one another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from walt.evaluation.clips import EvaluationError
from walt.evaluation.environment import package_version
from walt.evaluation.features import Extractor

VERSION = 2
PACKAGES = ("walt", "jax", "jaxlib", "numpy", "av", "pillow")
NOT_COMPARED = (
    "versions",
    "intervals",
    "of_first_repeat",
    "sampled",
    "real.from",
    "protocol.source",
    "protocol.left_open",
)
"""Packages may differ, since tests hold their figures together; so may what a folder of the same contents is called, prose, and what made the
generated videos, the seed of samples too: to tell that is what figures are compared for."""


def of_extraction(extractor: Extractor, clip_shape: tuple[int, ...], seed: int) -> dict[str, Any]:
    """The part of a card that features depend on."""
    return {
        "version": VERSION,
        "protocol": extractor.protocol.settings(),
        "network": {
            "name": extractor.network.name,
            "sha256": extractor.checksum,
            "published": extractor.published,
            "features": extractor.network.features,
        },
        "clip_shape": list(clip_shape),
        "seed": seed,
    }


def versions() -> dict[str, str]:
    """Of the packages that features depend on."""
    return {name: version for name in PACKAGES if (version := package_version(name)) is not None}


def first_unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> str | None:
    """The first entry in which two cards differ, with both values; `None` for like cards. Seeds may differ where they choose no clips."""
    chosen = _by_seed(a.get("protocol")) or _by_seed(b.get("protocol"))
    return _unlike(a, b, NOT_COMPARED if chosen else (*NOT_COMPARED, "seed"))


def _by_seed(protocol: Any) -> bool:
    """Whether the seed chooses clips under a card's protocol: where in a video they begin, or which ones of many; True for a damaged card."""
    if not isinstance(protocol, Mapping):
        return True
    some = any(protocol.get(name) is not None for name in ("num_real", "num_generated"))
    return protocol.get("selection") != "first" or (protocol.get("subset") != "first" and some)


def _unlike(a: Any, b: Any, ignored: tuple[str, ...], place: str = "") -> str | None:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in [*a, *(name for name in b if name not in a)]:
            inside = f"{place}.{name}" if place else str(name)
            if inside in ignored:
                continue
            if name not in a or name not in b:
                return f"{inside} is in one card alone"
            if unlike := _unlike(a[name], b[name], ignored, inside):
                return unlike
        return None
    return None if a == b else f"{place} is {json.dumps(a)} in one and {json.dumps(b)} in the other"


def compare(paths: tuple[str | Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    """(name, result) of several files that `walt evaluate --json` wrote, in their order.

    Raises `EvaluationError` for files that are none, and, naming the entry, where two of their cards differ.
    """
    if len(paths) < 2:
        raise EvaluationError(f"a comparison needs at least two results, got {len(paths)}")
    results = [(str(path), _read(Path(path))) for path in paths]
    first_name, first = results[0]
    for name, result in results[1:]:
        if unlike := first_unlike(first["card"], result["card"]):
            raise EvaluationError(f"{first_name} and {name} do not compare: {unlike}")
    return results


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON: {error}") from error
    if not isinstance(result, dict) or not isinstance(result.get("card"), dict):
        raise EvaluationError(f"{path} has no protocol card: it is no result of a Fréchet video distance")
    return result
