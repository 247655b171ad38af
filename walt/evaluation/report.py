"""The page that a person reads after a run: one HTML file with pictures, videos and figures inside, which opens without a server.

`Report` holds whatever a run produced; parts that are absent are left out of the page. The same inputs give the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from walt.data import media
from walt.evaluation import figures
from walt.evaluation.bars import Bar
from walt.evaluation.clips import Clips, EvaluationError, check_videos, evenly_spaced
from walt.evaluation.fidelity import Comparison
from walt.evaluation.motion import frame_difference
from walt.evaluation.result import EvaluationResult

MAX_CURVES = 4
"""Curves per stage: every metric with "loss" in its name first, then those with "psnr", then the learning rate."""

COMPARED_CLIPS = 8

FIDELITY_COLUMNS: Mapping[str, tuple[str, str]] = {
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "sharpness": ("sharpness", ".2f"),
    "motion_ratio": ("motion", ".2f"),
    "flicker_ratio": ("flicker", ".2f"),
}
RECONSTRUCTION_COLUMNS: Mapping[str, tuple[str, str]] = {
    "psnr": ("all pixels", ".1f"),
    "psnr_mean_frame_all_pixels": ("mean frame", ".1f"),
    "psnr_first_frame_repeated_all_pixels": ("first frame", ".1f"),
    "moving_fraction": ("moving", ".1%"),
    "psnr_moving": ("moving pixels", ".1f"),
    "psnr_mean_frame": ("mean frame", ".1f"),
    "psnr_first_frame_repeated": ("first frame", ".1f"),
    "reconstruction_motion_ratio": ("motion ratio", ".2f"),
}
GENERATION_COLUMNS: Mapping[str, tuple[str, str]] = {
    "prompt_accuracy": ("prompts right", ".0%"),
    "motion_real": ("motion, real", ".4f"),
    "motion_generated": ("generated", ".4f"),
    "motion_ratio": ("ratio", ".2f"),
    "diversity_real": ("diversity, real", ".3f"),
    "diversity_generated": ("generated", ".3f"),
    "diversity_ratio": ("ratio", ".2f"),
}


@dataclass(frozen=True, eq=False)
class Report:
    """Inputs of a report page; everything but the title may be absent.

    title, summary: headline and a sentence or two below it.
    result: the figures; its nearest clips are shown beside `generated`, so both must have one order.
    bars: figures with what they must reach (`atari_mini_bars(result)`).
    metrics: title of a training stage -> the records of its log, each with a `step`; stages without any are left out.
    progress: fidelity over time, a record for each measurement with `hours` of training, `psnr` and `ssim`.
    comparison: reconstructions beside those of simple codes.
    heldout, reconstructions: real clips and what the first stage makes of them (uint8, one shape); one clip per label is shown.
    generated: samples with their prompts.
    fps: frames per second at which the videos are shown.
    seconds_by_stage: title -> seconds.
    configs: title -> resolved config as JSON text.
    environment: what `describe_environment()` returned, and anything else worth a line.
    Raises `EvaluationError` for reconstructions or nearest clips that do not fit their clips.
    """

    title: str
    summary: str = ""
    result: EvaluationResult | None = None
    bars: tuple[Bar, ...] = ()
    metrics: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    progress: Sequence[Mapping[str, Any]] = ()
    comparison: Comparison | None = None
    heldout: Clips | None = None
    reconstructions: UInt8[np.ndarray, "n t h w 3"] | None = None
    generated: Clips | None = None
    fps: float = 10.0
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    configs: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reconstructions is not None:
            if self.heldout is None:
                raise EvaluationError("a report with reconstructions needs `heldout`, the clips that they reconstruct")
            check_videos(self.reconstructions, "reconstructions")
            if self.reconstructions.shape != self.heldout.videos.shape:
                raise EvaluationError(
                    f"reconstructions are {list(self.reconstructions.shape)} but held-out clips are {list(self.heldout.videos.shape)}"
                )
        nearest = None if self.result is None else self.result.nearest
        if nearest is not None and self.generated is not None and len(nearest.clips) != len(self.generated):
            raise EvaluationError(
                f"{len(self.generated)} generated clips but {len(nearest.clips)} nearest training clips: pass the clips evaluated"
            )


def write_report(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the page (UTF-8, one file, replaced as a whole) and returns its path; folders on the way are made."""
    text = render(report)
    with media.atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def render(report: Report) -> str:
    """The page as text."""
    total = sum(report.seconds_by_stage.values())
    return template("report.html.j2").render(
        title=report.title,
        summary=report.summary,
        bars=report.bars,
        comparison=_comparison(report),
        progress=_progress(report),
        stages=_stages(report),
        reconstructions=_reconstructions(report),
        prompts=_samples(report),
        nearest=None if report.result is None else report.result.nearest,
        nearest_heldout=None if report.result is None else report.result.nearest_heldout_distance,
        reconstruction_table=_table(report.result, RECONSTRUCTION_COLUMNS),
        generation_table=_table(report.result, GENERATION_COLUMNS),
        confusion=_confusion(report.result),
        seconds=[
            (name, _duration(value), value / total if total else 0.0) for name, value in report.seconds_by_stage.items()
        ],
        seconds_total=_duration(total),
        configs=report.configs,
        environment=flat(report.environment),
        definitions={} if report.result is None else report.result.protocol.get("definitions", {}),
    )


@functools.cache
def template(name: str) -> Any:
    """A page to fill in, in which what is filled in is escaped. Raises `EvaluationError` without what pages are drawn with."""
    try:
        import jinja2
        import matplotlib  # noqa: F401  (drawn with in figures.py, where a failure would come late)
    except ImportError as error:
        raise EvaluationError("a report needs jinja2 and matplotlib: pip install 'walt[report]'") from error
    loader = jinja2.PackageLoader("walt.evaluation", "templates")
    settings = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return settings.get_template(name)


def _comparison(report: Report) -> dict[str, Any] | None:
    """A table of the codes, and for some clips, evenly spaced, all codes in one animation."""
    comparison = report.comparison
    if comparison is None:
        return None
    rows = [
        (
            name,
            [comparison.coded[name].kept]
            + [_number(getattr(figures, key), form) for key, (_, form) in FIDELITY_COLUMNS.items()],
        )
        for name, figures in comparison.figures.items()
    ]
    clips = [
        {
            "label": comparison.originals.ids[row] if comparison.originals.ids else comparison.originals.labels[row],
            "image": figures.animation(
                figures.side_by_side(
                    [comparison.originals.videos[row], *(code.videos[row] for code in comparison.coded.values())]
                ),
                report.fps,
            ),
        }
        for row in evenly_spaced(len(comparison.originals), COMPARED_CLIPS)
    ]
    columns = ["kept of a clip", *(title for title, _ in FIDELITY_COLUMNS.values())]
    return {"columns": columns, "rows": rows, "clips": clips, "names": ["original", *comparison.coded]}


def _progress(report: Report) -> list[dict[str, str]]:
    """PSNR and SSIM over hours of training."""
    found = {name: figures.series(report.progress, name, step="hours") for name in ("psnr", "ssim")}
    return [
        {
            "name": name,
            "image": figures.curve_svg(
                hours, values, f"held-out {name.upper()}", smooth=False, log_scale=False, along="hours of training"
            ),
            "last": f"{values[-1]:.4g}",
        }
        for name, (hours, values) in found.items()
        if len(hours)
    ]


def _stages(report: Report) -> list[dict[str, Any]]:
    stages = []
    for name, records in report.metrics.items():
        found = [(metric, *figures.series(records, metric)) for metric in _curve_names(records)]
        curves = [
            {
                "name": metric,
                "image": figures.curve_svg(steps, values, metric, smooth="loss" in metric.lower()),
                "last": f"{values[-1]:.4g}",
            }
            for metric, steps, values in [entry for entry in found if len(entry[1])][:MAX_CURVES]
        ]
        if curves:
            stages.append({"name": name, "curves": curves})
    return stages


def _curve_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for record in records for name in record})

    def rank(name: str) -> int | None:
        lower = name.lower()
        if lower == "loss":
            return 0
        return next(
            (place for place, part in enumerate(("loss", "psnr", "learning_rate"), start=1) if part in lower), None
        )

    return sorted((name for name in names if rank(name) is not None), key=lambda name: (rank(name), name))


def _reconstructions(report: Report) -> list[dict[str, str]]:
    """One clip per label, the one of median motion: neither the liveliest nor a still one."""
    if report.heldout is None or report.reconstructions is None:
        return []
    shown = []
    for label in report.heldout.label_names:
        rows = report.heldout.rows_of(label)
        motion = (
            frame_difference(report.heldout.videos[rows]) if report.heldout.clip_shape[0] > 1 else np.zeros(len(rows))
        )
        row = rows[np.argsort(motion, kind="stable")[len(rows) // 2]]
        pair = figures.side_by_side([report.heldout.videos[row], report.reconstructions[row]])
        shown.append({"label": label, "image": figures.animation(pair, report.fps)})
    return shown


def _samples(report: Report) -> list[dict[str, Any]]:
    """Generated clips grouped by prompt in order of first appearance, each with its nearest training clip in the same animation."""
    clips = report.generated
    if clips is None:
        return []
    nearest = None if report.result is None else report.result.nearest
    named = None if report.result is None or report.result.prompts is None else report.result.prompts.named
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row, label in enumerate(clips.labels):
        videos = [clips.videos[row]] + ([] if nearest is None else [nearest.clips.videos[row]])
        card = {
            "image": figures.animation(figures.side_by_side(videos), report.fps),
            "distance": None if nearest is None else f"{nearest.distances[row]:.3f}",
            "nearest_label": None if nearest is None else nearest.clips.labels[row],
            "named": None if named is None else named[row],
            "right": None if named is None else named[row] == label,
        }
        groups.setdefault((clips.prompts[row] if clips.prompts else label, label), []).append(card)
    return [{"prompt": prompt, "label": label, "cards": cards} for (prompt, label), cards in groups.items()]


def _table(result: EvaluationResult | None, wanted: Mapping[str, tuple[str, str]]) -> dict[str, Any] | None:
    per_label = {} if result is None else result.per_label()
    names = [name for name in wanted if any(name in row for row in per_label.values())]
    if not names:
        return None
    rows = [(label, [_number(row.get(name), wanted[name][1]) for name in names]) for label, row in per_label.items()]
    return {"columns": [wanted[name][0] for name in names], "rows": rows}


def _confusion(result: EvaluationResult | None) -> dict[str, Any] | None:
    if result is None or result.prompts is None:
        return None
    counts = result.prompts.confusion
    names = sorted({*counts, *(name for row in counts.values() for name in row)})
    return {
        "names": names,
        "rows": [(asked, [(name, counts[asked].get(name, 0)) for name in names]) for asked in counts],
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _duration(seconds: float) -> str:
    """Seconds below a minute and a half, else minutes and seconds, else hours and minutes."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines for a two-column list; nested mappings become one line, unknown values are left out."""
    lines = []
    for name, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        if value is not None:
            lines.append((name.replace("_", " "), str(value)))
    return lines
