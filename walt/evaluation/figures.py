"""Pictures as text: curves as SVG and clips as animations, both as data URIs that need no file beside the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from walt.evaluation.clips import EvaluationError, check_videos

_LINE, _FAINT, _TEXT = "#2563eb", "#93b4f5", "#6b7280"


def series(records: Sequence[Mapping[str, Any]], name: str, step: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric; a step logged twice (a resumed run) counts with its later value."""
    found: dict[float, float] = {}
    for record in records:
        x, y = record.get(step), record.get(name)
        if isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(y):
            found[x] = float(y)
    steps = sorted(found)
    return np.array(steps, dtype=float), np.array([found[x] for x in steps])


def curve_svg(
    steps: np.ndarray,
    values: np.ndarray,
    title: str,
    *,
    smooth: bool = True,
    log_scale: bool | None = None,
    along: str = "step",
) -> str:
    """One curve over steps, or what `along` names, as an SVG data URI; with `smooth`, many values are drawn faintly below their running mean.

    Logarithmic when all values are positive and span more than a factor of 5, unless `log_scale` says otherwise.
    Raises `EvaluationError` when there is nothing to draw.
    """
    import matplotlib
    from matplotlib import ticker
    from matplotlib.figure import Figure

    if len(steps) == 0:
        raise EvaluationError(f"no finite values of {title!r} to draw")
    if log_scale is None:
        log_scale = bool(values.min() > 0 and values.max() > 5 * values.min())
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "walt", "font.family": "sans-serif", "font.size": 9}
    ):
        figure = Figure(figsize=(4.6, 2.5))  # fixed margins: an automatic layout takes ten times as long
        figure.subplots_adjust(left=0.12, right=0.98, top=0.88, bottom=0.17)
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        width = max(1, len(values) // 25) if smooth else 1
        if width > 1:
            axes.plot(steps, values, color=_FAINT, linewidth=0.8)
        marker = "o" if len(values) == 1 else None
        axes.plot(steps, running_mean(values, width), color=_LINE, linewidth=1.6, marker=marker)
        if log_scale:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        elif np.ptp(values) <= 1e-6 * np.abs(values).max():  # within what ticks could tell apart
            middle = float(values[-1])
            axes.set_ylim(*sorted((0.0, 2 * middle)) if middle else (-1.0, 1.0))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value)))
        axes.set_title(title, loc="left", color=_TEXT, fontsize=10)
        axes.set_xlabel(along, color=_TEXT)
        axes.tick_params(colors=_TEXT, which="both", length=0)
        axes.grid(True, color=_TEXT, alpha=0.18, linewidth=0.6)
        for spine in axes.spines.values():
            spine.set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return data_uri("image/svg+xml", file.getvalue().encode())


def short(value: float) -> str:
    """A number in six characters or so, which is what the margin of a curve holds."""
    if value == 0 or not 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    exponent = math.floor(math.log10(abs(value)))
    return f"{value / 10**exponent:.2g}e{exponent}"


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over the `width` latest values up to each position (fewer at the start)."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return (total[ends] - total[starts]) / (ends - starts)


def animation(video: UInt8[np.ndarray, "t h w 3"], fps: float, scale: int = 2) -> str:
    """An endlessly repeating animation as a data URI (WebP), every pixel enlarged to `scale` x `scale` so that colours stay true.

    A single frame becomes a still PNG. Raises `EvaluationError` for another dtype or shape or a frame rate that is not positive.
    """
    check_videos(video[None] if isinstance(video, np.ndarray) else video, "video")
    if not fps > 0:
        raise EvaluationError(f"fps must be positive, got {fps}")
    frames = [Image.fromarray(frame) for frame in video.repeat(scale, axis=1).repeat(scale, axis=2)]
    file = io.BytesIO()
    if len(frames) == 1:
        frames[0].save(file, "PNG")
        return data_uri("image/png", file.getvalue())
    duration = round(1000 / fps)
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=85, method=2
    )
    return data_uri("image/webp", file.getvalue())


def side_by_side(videos: Sequence[UInt8[np.ndarray, "t h w 3"]], gap: int = 2) -> UInt8[np.ndarray, "t h w2 3"]:
    """Videos of one shape in a row with a grey gap, which suits light pages and dark ones, so that one animation keeps them in step."""
    if len({video.shape for video in videos}) != 1:
        raise EvaluationError(f"videos side by side need one shape, got {sorted({video.shape for video in videos})}")
    space = np.full((*videos[0].shape[:2], gap, 3), 128, np.uint8)
    pieces = [piece for video in videos for piece in (video, space)][:-1]
    return np.concatenate(pieces, axis=2)


def data_uri(kind: str, content: bytes) -> str:
    """`content` as a base64 data URI of the given media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
