"""The Fréchet video distance of two sets of videos under a protocol, with what a reader needs to judge it.

A figure is called FVD only if the network's weights are those of the TF-Hub module; from any others it is a `frechet_distance`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from walt.data import media
from walt.evaluation import card, features, i3d_weights
from walt.evaluation.clips import EvaluationError, evenly_spaced
from walt.evaluation.features import Extractor, Features
from walt.evaluation.footage import Footage, of_arrays
from walt.evaluation.frechet import frechet_at_infinity, frechet_distance
from walt.evaluation.interval import confidence_interval
from walt.evaluation.kernel import kernel_distance
from walt.evaluation.manifold import NEIGHBOURS, manifold
from walt.evaluation.protocols import Protocol, protocol_named
from walt.evaluation.sensitivity import SPOILT, spoilt
from walt.evaluation.threads import one_blas_thread

FEWEST_CLIPS = 400
"""Below as many clips as the network has logits, the bias of the Fréchet distance is most of it."""
KERNEL_SUBSET, KERNEL_SUBSETS = 1000, 100


@dataclass(frozen=True, eq=False)
class VideoDistance:
    """Figures by name, what to mind about them, and the protocol card; `to_dict` has all of them as plain JSON values."""

    figures: Mapping[str, Any]
    warnings: tuple[str, ...]
    card: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """`fvd`, `fvd_ci`, `kvd`, `kvd_ci`, `num_real`, `num_generated`, ..., `warnings` and `card`."""
        return {**self.figures, "warnings": list(self.warnings), "card": dict(self.card)}

    def to_json(self) -> str:
        """`to_dict` as indented JSON; never NaN or Infinity."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def evaluate_videos(
    real: np.ndarray | Sequence[np.ndarray],
    generated: np.ndarray | Sequence[np.ndarray],
    protocol: str | Protocol = "tfgan-reference",
    *,
    weights: i3d_weights.Arrays | None = None,
    intervals: int = 100,
    seed: int = 0,
) -> VideoDistance:
    """The distance of videos in memory, [N, T, H, W, 3] or sequences of [T, H, W, 3], uint8 or floats in [0, 1].

    Args:
      protocol: a name of `walt.evaluation.protocols`.
      weights: see `i3d_weights.read`, whose default they have.
      intervals: subsets that the confidence intervals are made of; 0 for none.
      seed: of which clips of longer real videos are taken, and of subsets.

    Raises:
      EvaluationError: unknown protocol, missing weights, no videos, unlike shapes, fewer than nine frames, floats of another range.
    """
    chosen = protocol_named(protocol) if isinstance(protocol, str) else protocol
    footage = of_arrays(real, "real"), of_arrays(generated, "generated")
    return evaluate_footage(*footage, chosen, weights=weights, intervals=intervals, seed=seed)


def evaluate_footage(
    real: Footage | RealStatistics,
    generated: Footage,
    protocol: Protocol,
    *,
    weights: i3d_weights.Arrays | None = None,
    cache: Path | None = None,
    intervals: int = 100,
    seed: int = 0,
    save_real: Path | None = None,
    sensitivity: bool = False,
) -> VideoDistance:
    """`evaluate_videos` of any footage, or of stored statistics of the real one; features are kept in `cache`.

    With `save_real` the statistics of the real footage are written there, for `read_real`. With `sensitivity` the figures are followed by
    those of two halves of the real clips, and of the generated ones spoilt in known ways. Raises `EvaluationError` as
    `evaluate_videos`, and for statistics under another protocol, network or seed.
    """
    extractor = Extractor(protocol, weights)
    chosen = seed if protocol.subset == "random" else None
    if isinstance(real, RealStatistics):
        of_real = _stored(real, extractor, seed)
    else:
        of_real = _real(real.some(protocol.num_real, chosen), extractor, cache, seed)
    if save_real is not None:
        write_real(of_real, save_real)
    wanted = None if protocol.num_generated is None else protocol.num_generated * protocol.repeats
    of_generated = features.extract_features(
        generated.some(wanted, chosen), extractor, random_start=False, seed=seed, cache=cache, title="generated"
    )
    shape = tuple(of_real.card["clip_shape"])
    if of_generated.clip_shape != shape:
        raise EvaluationError(
            f"real clips are {list(shape)} but generated ones {list(of_generated.clip_shape)}: bring both to one size and length"
        )
    found = _measure(of_real, of_generated, protocol, intervals, seed)
    if not sensitivity:
        return found
    count = found.figures["num_generated"]
    sets = {"real clips, halves": (of_real.logits[::2], of_real.logits[1::2])}
    for how in SPOILT:
        footage = spoilt(generated.some(count, chosen), how)
        of_spoilt = features.extract_features(footage, extractor, random_start=False, seed=seed, cache=cache, title=how)
        sets[how] = (of_real.logits, of_spoilt.logits)
    rows = {name: _pair(*logits, protocol) for name, logits in sets.items()}
    return replace(found, figures={**found.figures, "sensitivity": rows})


# ---- statistics of real footage


@dataclass(frozen=True, eq=False)
class RealStatistics:
    """Logits of real clips and the card of how they were made."""

    logits: Float[np.ndarray, "n 400"]
    card: Mapping[str, Any]


def write_real(statistics: RealStatistics, path: Path) -> None:
    """As one npz: `logits`, and `card` as JSON."""
    with media.atomic_path(path) as temporary:
        np.savez(temporary, logits=statistics.logits, card=json.dumps(statistics.card))


def read_real(path: Path) -> RealStatistics:
    """What `write_real` wrote. Raises `EvaluationError` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return RealStatistics(stored["logits"], json.loads(str(stored["card"])))
    except Exception as error:  # zip, numpy and json raise plain and differing types
        raise EvaluationError(f"{path} holds no statistics of real clips (--save_real writes them): {error}") from error


def _real(footage: Footage, extractor: Extractor, cache: Path | None, seed: int) -> RealStatistics:
    random_start = extractor.protocol.selection == "random"
    found = features.extract_features(
        footage, extractor, random_start=random_start, seed=seed, cache=cache, title="real"
    )
    of = {"sha256": found.fingerprint, "from": Path(footage.description).name, "clips": len(found.logits)}
    head = card.of_extraction(extractor, found.clip_shape, seed)
    return RealStatistics(found.logits, {**head, "real": {**of, "bad": list(found.bad)}})


def _stored(statistics: RealStatistics, extractor: Extractor, seed: int) -> RealStatistics:
    expected = card.of_extraction(extractor, tuple(statistics.card.get("clip_shape", ())), seed)
    stored = {name: statistics.card.get(name) for name in expected}
    if unlike := card.first_unlike(stored, expected):
        raise EvaluationError(f"the stored statistics of real clips were made otherwise: {unlike}")
    return statistics


# ---- figures


@one_blas_thread
def _pair(real: np.ndarray, generated: np.ndarray, protocol: Protocol) -> dict[str, float]:
    """Both distances and the smaller number of clips."""
    frechet = frechet_distance(real, generated, protocol.estimator, protocol.divisor)
    kernel = kernel_distance(real, generated, _subsets(real, generated), KERNEL_SUBSET)
    return {"frechet_distance": frechet, "kernel_distance": kernel, "clips": min(len(real), len(generated))}


@one_blas_thread
def _measure(real: RealStatistics, generated: Features, protocol: Protocol, intervals: int, seed: int) -> VideoDistance:
    measure = partial(frechet_distance, estimator=protocol.estimator, divisor=protocol.divisor)
    count = protocol.num_generated or len(generated.logits)
    repeats = max(min(protocol.repeats, len(generated.logits) // count), 1)
    # Every so-manieth clip, since files are often in the order of classes.
    groups = [generated.logits[: count * repeats][start::repeats] for start in range(repeats)]
    distances = [measure(real.logits, group) for group in groups]
    first, published = groups[0], real.card["network"]["published"]
    fvd, kvd = ("fvd", "kvd") if published else ("frechet_distance", "kernel_distance")
    figures: dict[str, Any] = {fvd: float(np.mean(distances))}
    if repeats > 1:
        figures[f"{fvd}_std"] = float(np.std(distances))
    figures[f"{fvd}_ci"] = _interval(measure, real.logits, first, intervals, seed)
    figures[f"{fvd}_infinity"] = _at_infinity(real.logits, first, protocol, seed)
    figures[kvd] = kernel_distance(real.logits, first, _subsets(real.logits, first), KERNEL_SUBSET, seed)
    figures[f"{kvd}_ci"] = _interval(kernel_distance, real.logits, first, intervals, seed, KERNEL_SUBSET)
    figures.update(_manifold(real.logits, first, intervals, seed))
    figures |= {"num_real": len(real.logits), "num_generated": len(first), "repeats": repeats}
    figures |= {"bad_real": real.card["real"]["bad"], "bad_generated": list(generated.bad)}
    finished = {
        **real.card,
        "num_real": len(real.logits),
        "num_generated": len(first),
        "repeats": repeats,
        "kernel": {"subset": KERNEL_SUBSET, "subsets": KERNEL_SUBSETS},
        "neighbours": NEIGHBOURS,
        "intervals": intervals,
        "versions": card.versions(),
    }
    return VideoDistance(figures, _warnings(figures, protocol, real, published), finished)


def _subsets(real: np.ndarray, generated: np.ndarray) -> int:
    """Of the kernel distance; none where whole sets are small enough."""
    return KERNEL_SUBSETS if max(len(real), len(generated)) > KERNEL_SUBSET else 0


def _interval(
    measure: Any, real: np.ndarray, generated: np.ndarray, repeats: int, seed: int, most: int | None = None
) -> list[float] | None:
    """`None` where there are too few clips for one."""
    share = min(0.5, most / max(len(real), len(generated))) if most else 0.5
    if not repeats or min(len(real), len(generated)) * share < 2:
        return None
    return list(confidence_interval(measure, real, generated, share=share, repeats=max(repeats, 2), seed=seed))


def _at_infinity(real: np.ndarray, generated: np.ndarray, protocol: Protocol, seed: int) -> float | None:
    try:
        return frechet_at_infinity(real, generated, protocol.estimator, protocol.divisor, seed).value
    except EvaluationError as error:
        logging.info("left out: %s", error)
        return None


def _manifold(real: np.ndarray, generated: np.ndarray, intervals: int, seed: int) -> dict[str, Any]:
    """The four shares, of at most `KERNEL_SUBSET` clips of each kind, with intervals; nothing for fewer clips than make any."""
    real, generated = (rows[evenly_spaced(len(rows), KERNEL_SUBSET)] for rows in (real, generated))
    if min(len(real), len(generated)) <= NEIGHBOURS:
        return {}
    whole, figures = manifold(real, generated), {}
    for name in ("precision", "recall", "density", "coverage"):
        figures[name] = getattr(whole, name)
        if min(len(real), len(generated)) // 2 > NEIGHBOURS:
            measure = lambda x, y: getattr(manifold(x, y), name)  # noqa: B023, E731
            figures[f"{name}_ci"] = _interval(measure, real, generated, intervals, seed)
    return figures


def _warnings(figures: Mapping[str, Any], protocol: Protocol, real: RealStatistics, published: bool) -> tuple[str, ...]:
    found = []
    fewest = min(figures["num_real"], figures["num_generated"])
    if fewest < FEWEST_CLIPS:
        found.append(
            f"with {fewest} clips, fewer than {FEWEST_CLIPS}, the distance is mostly bias: go by the kernel distance beside it"
        )
    for name in ("num_real", "num_generated"):
        asked = getattr(protocol, name)
        if asked is not None and figures[name] < asked:
            kind = name.removeprefix("num_")
            found.append(
                f"{protocol.name} asks for {asked:,} {kind} clips, these are {figures[name]:,}: published figures do not compare"
            )
    if figures["repeats"] < protocol.repeats:
        found.append(
            f"{protocol.name} asks for {protocol.repeats} repeats with other generated clips, this is {figures['repeats']}"
        )
    if not published:
        found.append("the weights of I3D are others than those of deepmind/i3d-kinetics-400/1, so this is no FVD")
    for kind in ("bad_real", "bad_generated"):
        if figures[kind]:
            found.append(
                f"{len(figures[kind])} {kind.removeprefix('bad_')} videos could not be used; the first: {figures[kind][0]}"
            )
    return tuple(found)
