"""Figures of features: distances of real and generated ones with their intervals, warnings and the protocol card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from walt.evaluation import card
from walt.evaluation.clips import EvaluationError, evenly_spaced
from walt.evaluation.features import Features
from walt.evaluation.footage import Footage
from walt.evaluation.frechet import frechet_at_infinity, frechet_distance
from walt.evaluation.inception_score import inception_score
from walt.evaluation.interval import confidence_interval
from walt.evaluation.kernel import kernel_distance
from walt.evaluation.manifold import NEIGHBOURS, manifold
from walt.evaluation.networks import NETWORKS
from walt.evaluation.protocols import Protocol
from walt.evaluation.threads import one_blas_thread

FEWEST_CLIPS = 400
"""Below as many clips as the network has features (I3D: 400), the bias of the Fréchet distance is most of it."""
KERNEL_SUBSET, KERNEL_SUBSETS = 1000, 100


@dataclass(frozen=True, eq=False)
class RealStatistics:
    """Features of real clips, the card of how they were made, which rows of their footage these are (unless nobody knows any more), and the caption
    and label of each ("" for none; empty where they were not looked up)."""

    values: Float[np.ndarray, "n d"]
    card: Mapping[str, Any]
    rows: Int[np.ndarray, " n"] | None = None
    described: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class VideoDistance:
    """Figures by name, what to mind about them, the protocol card, and the features that they are of, with the footage that the rows of these are
    rows of (None for stored statistics); `to_dict` has the first three as plain JSON values."""

    figures: Mapping[str, Any]
    warnings: tuple[str, ...]
    card: Mapping[str, Any]
    real: RealStatistics = field(repr=False)
    generated: Features = field(repr=False)
    footage: tuple[Footage | None, Footage] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """`fvd`, `fvd_ci`, `kvd`, `kvd_ci`, `num_real`, `num_generated`, ..., `warnings` and `card`."""
        return {**self.figures, "warnings": list(self.warnings), "card": dict(self.card)}

    def to_json(self) -> str:
        """`to_dict` as indented JSON; never NaN or Infinity."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


@one_blas_thread
def measure(real: RealStatistics, generated: Features, protocol: Protocol, intervals: int, seed: int) -> VideoDistance:
    """All figures that a protocol asks for, of the first repeat alone where the card's `of_first_repeat` names them. An interval lies around the
    figure that it is for; how wide it is, a single repeat says. Raises `EvaluationError` for unlike shapes and for fewer clips than make a figure."""
    shape = tuple(real.card["clip_shape"])
    if generated.clip_shape and generated.clip_shape != shape:
        raise EvaluationError(
            f"real clips are {list(shape)} but generated ones {list(generated.clip_shape)}: bring both to one size and length"
        )
    network, published = NETWORKS[protocol.network], real.card["network"]["published"]
    count = protocol.num_generated or len(generated.values)
    repeats = max(min(protocol.repeats, len(generated.values) // count), 1)
    # Every so-manieth clip, since files are often in the order of classes.
    groups = [generated.values[: count * repeats][start::repeats] for start in range(repeats)]
    figures: dict[str, Any] = {}
    if network.distance:
        of_real, *of_groups = (network.embedding(values) for values in (real.values, *groups))
        names = (network.distance, network.kernel) if published else ("frechet_distance", "kernel_distance")
        figures |= _distances(of_real, of_groups, names, protocol, intervals, seed)
    if network.classes:
        name = network.score if published else "classifier_score"
        scores = [inception_score(network.logits(group), protocol.splits) for group in groups]
        figures |= {name: float(np.mean([s.mean for s in scores])), f"{name}_std": scores[0].std}
        figures[f"{name}_real"] = inception_score(network.logits(real.values), protocol.splits).mean
    figures |= {"num_real": len(real.values), "num_generated": len(groups[0]), "repeats": repeats}
    figures |= {"bad_real": real.card["real"]["bad"], "bad_generated": list(generated.bad)}
    finished = {
        **real.card,
        "seed": seed,
        "num_real": len(real.values),
        "num_generated": len(groups[0]),
        "repeats": repeats,
        "kernel": {"subset": KERNEL_SUBSET, "subsets": KERNEL_SUBSETS},
        "neighbours": NEIGHBOURS,
        **({"of_first_repeat": _of_first_repeat(figures)} if repeats > 1 else {}),
        "intervals": intervals,
        "versions": card.versions(),
    }
    return VideoDistance(figures, _warnings(figures, protocol, real, published), finished, real, generated)


def _distances(
    real: np.ndarray,
    groups: list[np.ndarray],
    names: tuple[str, str],
    protocol: Protocol,
    intervals: int,
    seed: int,
) -> dict[str, Any]:
    frechet = partial(frechet_distance, estimator=protocol.estimator, divisor=protocol.divisor)
    distances, first = [frechet(real, group) for group in groups], groups[0]
    distance, kernel = names
    figures: dict[str, Any] = {distance: float(np.mean(distances))}
    if len(groups) > 1:
        figures[f"{distance}_std"] = float(np.std(distances))
    figures[f"{distance}_ci"] = _interval(frechet, real, first, figures[distance], intervals, seed)
    figures[f"{distance}_infinity"] = _at_infinity(real, first, protocol, seed)
    figures[kernel] = kernel_distance(real, first, _subsets(real, first), KERNEL_SUBSET, seed)
    figures[f"{kernel}_ci"] = _interval(kernel_distance, real, first, figures[kernel], intervals, seed, KERNEL_SUBSET)
    return figures | _manifold(real, first, intervals, seed)


def _of_first_repeat(figures: Mapping[str, Any]) -> list[str]:
    """What is not a mean over all repeats, whose names have an `_std` beside them."""
    numbers = [name for name, value in figures.items() if isinstance(value, float)]
    return [name for name in numbers if not name.endswith(("_std", "_real")) and f"{name}_std" not in figures]


@one_blas_thread
def sensitivity_rows(
    real: RealStatistics, spoilt: Mapping[str, np.ndarray], protocol: Protocol
) -> dict[str, dict[str, float]]:
    """Both distances and the smaller number of clips: of the halves of the real clips, and of them to clips that were spoilt."""
    embedding = NETWORKS[protocol.network].embedding
    of_real = embedding(real.values)
    rows = {"real clips, halves": _pair(of_real[::2], of_real[1::2], protocol)}
    return rows | {how: _pair(of_real, embedding(values), protocol) for how, values in spoilt.items()}


def _pair(real: np.ndarray, generated: np.ndarray, protocol: Protocol) -> dict[str, float]:
    frechet = frechet_distance(real, generated, protocol.estimator, protocol.divisor)
    kernel = kernel_distance(real, generated, _subsets(real, generated), KERNEL_SUBSET)
    return {"frechet_distance": frechet, "kernel_distance": kernel, "clips": min(len(real), len(generated))}


def _subsets(real: np.ndarray, generated: np.ndarray) -> int:
    """Of the kernel distance; none where whole sets are small enough."""
    return KERNEL_SUBSETS if max(len(real), len(generated)) > KERNEL_SUBSET else 0


def _interval(
    measure: Any,
    real: np.ndarray,
    generated: np.ndarray,
    centre: float,
    repeats: int,
    seed: int,
    most: int | None = None,
) -> list[float] | None:
    """Around `centre`, from subsets of at most `most` clips; `None` where there are too few clips for one."""
    share = min(0.5, most / max(len(real), len(generated))) if most else 0.5
    if not repeats or min(len(real), len(generated)) * share < 2:
        return None
    repeats = max(repeats, 2)
    return list(confidence_interval(measure, real, generated, centre=centre, share=share, repeats=repeats, seed=seed))


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
            share = lambda x, y: getattr(manifold(x, y), name)  # noqa: B023, E731
            interval = _interval(share, real, generated, figures[name], intervals, seed)
            most = np.inf if name == "density" else 1.0
            figures[f"{name}_ci"] = interval and [float(np.clip(end, 0, most)) for end in interval]
    return figures


def _warnings(figures: Mapping[str, Any], protocol: Protocol, real: RealStatistics, published: bool) -> tuple[str, ...]:
    found = []
    network = NETWORKS[protocol.network]
    fewest, needed = min(figures["num_real"], figures["num_generated"]), max(FEWEST_CLIPS, network.width(real.values))
    if network.distance and fewest < needed:
        found.append(
            f"with {fewest} clips, fewer than {needed}, the distance is mostly bias: go by the kernel distance beside it"
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
        published_name = (network.distance or network.score).upper()
        found.append(
            f"the weights of {network.name} are others than those of {network.source}, so this is no {published_name}"
        )
    for kind in ("bad_real", "bad_generated"):
        if figures[kind]:
            found.append(
                f"{len(figures[kind])} {kind.removeprefix('bad_')} videos could not be used; the first: {figures[kind][0]}"
            )
    return tuple(found)
