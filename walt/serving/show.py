"""What the page shows, as HTML. All text that a visitor has written is escaped here."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from walt.generation.record import Record
from walt.serving.jobs import Progress, Waiting

PREVIEW_SIDE = 384
"""Pixels that the longer side of a preview has at most."""


def escaped(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def hint(text: str) -> str:
    """A line in place of a video."""
    return f'<span class="walt-hint">{escaped(text)}</span>'


def status(text: str, share: float = 0.0) -> str:
    """Where the work is: a line over a bar of which a share is full."""
    return f'<div>{escaped(text)}</div><div class="walt-bar"><div style="width:{100 * share:.0f}%"></div></div>'


def progress(now: Progress) -> str:
    """`status` of a sampler."""
    part = f", part {now.part}" if now.part > 1 else ""
    return status(f"Step {now.step} of {now.steps}{part}", now.step / now.steps)


def waiting(now: Waiting) -> str:
    """`status` of a request that has not begun."""
    return status(f"Waiting for {now.before} other request{'s' * (now.before != 1)}")


def moving(video: UInt8[np.ndarray, "t h w 3"], fps: float) -> str:
    """A video as a picture that moves, within the page itself."""
    every = -(-max(video.shape[1:3]) // PREVIEW_SIDE)
    frames = [Image.fromarray(pixels) for pixels in np.ascontiguousarray(video[:, ::every, ::every])]
    file = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": round(1000 / fps), "loop": 0}
    frames[0].save(file, "WEBP", quality=75, method=0, **options)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="what the model guesses by now" src="data:image/webp;base64,{data}">'


def caption(record: Record) -> str:
    """One line under a picture."""
    text = "; ".join(record.prompts)
    return f"{text[:60]}{'…' * (len(text) > 60)} (seed {record.seed})"


def facts(record: Record, file: str) -> str:
    """How a video was made, as a table."""
    rows = {
        "Task": record.task if record.task != "generate" else "",
        "Prompt": "; ".join(record.prompts) if not record.shots else "",
        "Shots": "; ".join(", ".join(_told(shot.told())) for shot in record.shots),
        "Negative prompt": record.negative_prompt,
        "Seed": record.seed,
        "Sampling": f"{record.steps} steps of {record.solver}, guidance {record.guidance:g}",
        "Size": f"{record.num_frames} frames of {record.height}x{record.width}, {record.fps:g} per second",
        **{name.replace("_", " ").capitalize(): value for name, value in record.options.items()},
        "Given": ", ".join(name.replace(".", " ") for name in record.inputs),
        "Known parts": record.conditioning,
        "Model": ", ".join(f"{checksum[:12]}" for checksum in record.models),
        "Again": "" if record.inputs else f"walt sample --like={file} --output=again.mp4",
    }
    cells = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>" for name, value in rows.items() if value != ""
    )
    return f'<table class="walt-facts">{cells}</table>'


def _told(shot: dict[str, Any]) -> list[str]:
    """A shot in words, its prompt first."""
    return [shot["prompt"], *(f"{name.replace('_', ' ')} {value}" for name, value in shot.items() if name != "prompt")]
