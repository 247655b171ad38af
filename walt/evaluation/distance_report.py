"""The page about a distance: what was measured, what the figure reacts to, and the clips behind it, from the most to the least like real ones.

Neighbours and typicality are by distances of features, the same that the figures are of. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from walt.data import media
from walt.evaluation import figures, report
from walt.evaluation.clips import EvaluationError, evenly_spaced
from walt.evaluation.features import clip_of
from walt.evaluation.footage import Footage
from walt.evaluation.kernel import kernel_distance
from walt.evaluation.measure import VideoDistance
from walt.evaluation.networks import NETWORKS
from walt.evaluation.protocols import Protocol
from walt.evaluation.sensitivity import SPOILT
from walt.evaluation.threads import one_blas_thread

SHOWN_NEIGHBOURS, SHOWN_SAMPLES, NEAREST = 12, 32, 5
LARGEST_SIDE = 160
"""Clips are enlarged where they are less than half as large."""

MEANINGS: Mapping[str, str] = {
    "fvd": "Fréchet video distance: of the Gaussians around the features of both sets; 0 for sets alike, larger for fewer clips",
    "fid": "Fréchet inception distance of stills",
    "frechet_distance": "the same from weights of another network than the published one",
    "efficientnet_distance": "Fréchet distance of features of EfficientNet-Lite0",
    "infinity": "what it tends to for ever more clips, by a line over 1 / N",
    "kvd": "kernel video distance: unbiased, around 0 for sets alike, whatever their size",
    "kid": "kernel inception distance",
    "kernel_distance": "kernel distance, from weights of another network than the published one",
    "efficientnet_kernel_distance": "kernel distance of the same features, unbiased",
    "std": "its standard deviation over repeats or splits",
    "precision": "share of generated clips that lie among real ones: fidelity",
    "recall": "share of real clips that lie among generated ones: diversity",
    "density": "how many real neighbourhoods a generated clip lies in, over those of a real one",
    "coverage": "share of real clips that have a generated one in their neighbourhood",
    "inception_score": "how sure and how varied a classifier of pictures is; 1 to the number of its classes",
    "c3d_inception_score": "how sure and how varied a classifier of videos is",
    "real": "the same of the real clips",
}


@dataclass(frozen=True, eq=False)
class DistanceReport:
    """Inputs of the page.

    title, summary: headline and a sentence or two below it.
    found: what `evaluate_footage` returned.
    protocol, seed: under which.
    fps: frames per second at which clips are shown.
    environment: what `describe_environment()` returned.
    """

    title: str
    found: VideoDistance
    protocol: Protocol
    seed: int = 0
    summary: str = ""
    fps: float = 8.0
    environment: Mapping[str, Any] = field(default_factory=dict)


def write_distance_report(page: DistanceReport, path: str | os.PathLike[str]) -> Path:
    """Writes the page (UTF-8, one file, replaced as a whole) and returns its path; folders on the way are made."""
    text = render(page)
    with media.atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


@one_blas_thread
def render(page: DistanceReport) -> str:
    """The page as text. Raises `EvaluationError` for figures without features that a distance is taken of."""
    found, network = page.found, NETWORKS[page.protocol.network]
    if found.footage is None:
        raise EvaluationError("a report needs the footage that was measured: take what `evaluate_footage` returns")
    clips = _Clips(page)
    neighbours = None
    if network.distance and len(found.real.values) > NEAREST:
        neighbours = nearest(network.embedding(found.real.values), network.embedding(found.generated.values))
    return report.template("distance.html.j2").render(
        title=page.title,
        summary=page.summary,
        figures=figure_rows(found.figures),
        counts=[("generated clips", found.figures["num_generated"]), ("real clips", found.figures["num_real"])],
        warnings=found.warnings,
        sensitivity=_sensitivity(page, clips),
        neighbours=_neighbours(clips, neighbours),
        classes=None if neighbours is None else class_table(page, neighbours),
        samples=_samples(clips, neighbours),
        shown_clips=NEAREST,
        card=json.dumps(found.card, indent=2),
        environment=report.flat(page.environment),
    )


def figure_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(name, value, interval, meaning) of every figure that is one number."""
    rows = []
    for name, value in found.items():
        if not isinstance(value, float):
            continue
        interval = found.get(f"{name}_ci")
        shown = f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""
        meaning = MEANINGS.get(name) or MEANINGS.get(name.rpartition("_")[2], "")
        rows.append((name, f"{value:.4g}", shown, meaning))
    return rows


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of every generated clip: its nearest real one and how far that is, and the mean distance of the nearest few, by which clips are sorted
    (small is typical); and the usual distance of a real clip to the nearest other real one."""

    nearest: Int[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    typicality: Float[np.ndarray, " n"]
    usual: float


def nearest(real: Float[np.ndarray, "m d"], generated: Float[np.ndarray, "n d"]) -> Neighbours:
    """By Euclidean distances of features; there must be more real clips than `NEAREST`."""
    places, distances = _closest(generated, real, NEAREST)
    _, among_real = _closest(real, real, 2)
    return Neighbours(places[:, 0], distances[:, 0], distances.mean(1), float(np.median(among_real[:, 1])))


def _closest(
    queries: Float[np.ndarray, "n d"], others: Float[np.ndarray, "m d"], count: int, rows: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    centre = others.mean(
        0, dtype=np.float64
    )  # products of features far from zero would lose the digits that tell them apart
    queries, others = queries - centre, others - centre
    lengths = np.square(others).sum(1)
    places, distances = [], []
    for start in range(0, len(queries), rows):
        piece = queries[start : start + rows]
        squared = np.maximum(np.square(piece).sum(1)[:, None] + lengths - 2 * piece @ others.T, 0)
        chosen = np.argsort(squared, axis=1, kind="stable")[:, :count]
        places.append(chosen)
        distances.append(np.sqrt(np.take_along_axis(squared, chosen, axis=1)))
    return np.concatenate(places), np.concatenate(distances)


def class_table(page: DistanceReport, neighbours: Neighbours) -> dict[str, Any] | None:
    """A row for every label of the generated clips, if there are several: numbers, kernel distance to the real clips of that label, typicality."""
    found, (real_footage, generated_footage) = page.found, page.found.footage or (None, None)
    assert generated_footage is not None
    embedding = NETWORKS[page.protocol.network].embedding
    generated_labels = np.array(_labels(generated_footage, found.generated.rows))
    real_labels = np.array(_labels(real_footage, found.real.rows))
    names = sorted(set(generated_labels) - {""})
    if len(names) < 2:
        return None
    rows = []
    for name in names:
        mine = generated_labels == name
        theirs = real_labels == name if len(real_labels) else np.zeros(0, bool)
        distance = None
        if mine.sum() > 1 and theirs.sum() > 1:
            distance = kernel_distance(embedding(found.real.values)[theirs], embedding(found.generated.values)[mine])
        same = f"{(real_labels[neighbours.nearest[mine]] == name).mean():.0%}" if theirs.any() else "–"
        shown = "–" if distance is None else f"{distance:.4g}"
        typical = f"{neighbours.typicality[mine].mean():.3g}"
        rows.append((name, [str(int(mine.sum())), str(int(theirs.sum())), shown, typical, same]))
    columns = ["generated", "real", "kernel distance", "distance of the nearest 5", "nearest of its class"]
    return {"columns": columns, "rows": rows}


def _labels(footage: Footage | None, rows: np.ndarray | None) -> list[str]:
    if footage is None or rows is None:
        return []
    return [footage.videos[row].describe()[1] for row in rows.tolist()]


class _Clips:
    """The clips behind rows of features, as pictures that move."""

    def __init__(self, page: DistanceReport):
        self.page = page
        real, generated = page.found.footage or (None, None)
        assert generated is not None
        self.real, self.generated = real, generated
        self.random = page.protocol.selection == "random"

    def of_generated(self, place: int) -> UInt8[np.ndarray, "t h w 3"]:
        return self._clip(self.generated, int(self.page.found.generated.rows[place]), False)

    def of_real(self, place: int) -> UInt8[np.ndarray, "t h w 3"] | None:
        rows = self.page.found.real.rows
        if self.real is None or rows is None:
            return None
        return self._clip(self.real, int(rows[place]), self.random)

    def caption(self, place: int) -> str:
        video = self.generated.videos[int(self.page.found.generated.rows[place])]
        caption, label = video.describe()
        return caption or label or video.name

    def animation(self, *clips: UInt8[np.ndarray, "t h w 3"]) -> str:
        scale = max(1, LARGEST_SIDE // max(clips[0].shape[1:3]))
        return figures.animation(figures.side_by_side(clips), self.page.fps, scale)

    def _clip(self, footage: Footage, row: int, random_start: bool) -> UInt8[np.ndarray, "t h w 3"]:
        clip = clip_of(footage, row, self.page.protocol, random_start, self.page.seed)
        return clip if clip.dtype == np.uint8 else np.rint(np.clip(clip, 0, 255)).astype(np.uint8)


def _neighbours(clips: _Clips, found: Neighbours | None) -> dict[str, Any] | None:
    """Some generated clips, from the nearest to the farthest, each with its nearest real one."""
    if found is None or clips.of_real(0) is None:
        return None
    order = np.argsort(found.distance, kind="stable")
    pairs = []
    for place in order[evenly_spaced(len(order), SHOWN_NEIGHBOURS)].tolist():
        real = clips.of_real(int(found.nearest[place]))
        assert real is not None
        image = clips.animation(clips.of_generated(place), real)
        pairs.append({"image": image, "caption": clips.caption(place), "distance": f"{found.distance[place]:.3g}"})
    return {"pairs": pairs, "usual": f"{found.usual:.3g}", "median": f"{np.median(found.distance):.3g}"}


def _samples(clips: _Clips, found: Neighbours | None) -> list[dict[str, str]]:
    """Generated clips from the most to the least typical; in their own order where there is no telling."""
    count = len(clips.page.found.generated.rows)
    order = np.arange(count) if found is None else np.argsort(found.typicality, kind="stable")
    return [
        {
            "image": clips.animation(clips.of_generated(place)),
            "caption": clips.caption(place),
            "typicality": "" if found is None else f"{found.typicality[place]:.3g}",
        }
        for place in order[evenly_spaced(count, SHOWN_SAMPLES)].tolist()
    ]


def _sensitivity(page: DistanceReport, clips: _Clips) -> list[dict[str, Any]]:
    """The floor, the figure itself and what it becomes when clips are spoilt, each with the same clip so treated."""
    rows = page.found.figures.get("sensitivity")
    if not rows:
        return []
    network = NETWORKS[page.protocol.network]
    names = (network.distance, network.kernel) if network.distance in page.found.figures else None
    frechet, kernel = names or ("frechet_distance", "kernel_distance")
    itself = {
        "frechet_distance": page.found.figures[frechet],
        "kernel_distance": page.found.figures[kernel],
        "clips": page.found.figures["num_generated"],
    }
    floor, *spoilt = rows.items()
    clip = clips.of_generated(0)
    pictures: dict[str, str | None] = {
        name: clips.animation(SPOILT[name](clip, np.random.default_rng(0))) for name, _ in spoilt
    }
    of_real = clips.of_real(0)
    pictures[floor[0]] = None if of_real is None else clips.animation(of_real)
    pictures["as generated"] = clips.animation(clip)
    largest = max(row["frechet_distance"] for row in (itself, *rows.values())) or 1.0
    return [
        {
            "name": name,
            "image": pictures[name],
            "frechet": f"{row['frechet_distance']:.4g}",
            "kernel": f"{row['kernel_distance']:.3g}",
            "clips": row["clips"],
            "share": max(row["frechet_distance"], 0.0) / largest,
        }
        for name, row in (floor, ("as generated", itself), *spoilt)
    ]
