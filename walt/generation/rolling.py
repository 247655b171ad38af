"""Videos of any length, window by window: the end of what is there is encoded again, and is the known beginning of the next window.

The windows of a clip lie on its latent frames: the autoencoder makes latent frame k > 0 of the pictures 4k - 3 to 4k (of its time factor 4), and frame 0 of
one picture. A window that begins with the n latent frames of the last 1 + 4 (n - 1) pictures therefore goes on with latent frames that are those of the
clip, whose latents can be used as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from walt.generation.canvas import Sheet, held, joined
from walt.generation.sampling import Sampling

if TYPE_CHECKING:
    from walt.generation.pipeline import Pipeline

Clip = UInt8[np.ndarray, "t h w 3"]


def overlap_of(pipeline: Pipeline) -> int:
    """Known latent frames at the beginning of a window: two, as in W.A.L.T (section 4), if there is room."""
    return min(2, pipeline.latent_shape[0] - 1)


def context_length(pipeline: Pipeline) -> int:
    """Pictures of which those are made."""
    return 1 + (overlap_of(pipeline) - 1) * pipeline.time_factor


def paint_whole(pipeline: Pipeline, canvas: Sheet, prompt: str | None, sampling: Sampling, *, row: int = 0) -> Clip:
    """A canvas of any length, in as many windows as it takes."""
    length, frames = canvas.frames, pipeline.latent_shape[0]

    def targets() -> Iterator[Sheet]:
        done = 1 if length == 1 else frames
        yield canvas.part(0, done)
        fresh = frames - overlap_of(pipeline)
        while done < length:
            yield canvas.part(done, done + fresh)
            done += fresh

    chunks = roll(pipeline, targets(), _forever(prompt), sampling, row=row)
    return np.concatenate(list(chunks))[: 1 + (length - 1) * pipeline.time_factor]


def roll(
    pipeline: Pipeline,
    targets: Iterable[Sheet],
    prompts: Iterable[str | None],
    sampling: Sampling,
    *,
    tail: Clip | None = None,
    context_level: float = 1.0,
    row: int = 0,
) -> Iterator[Clip]:
    """New pictures, as each window is done, in memory that does not grow.

    Args:
      targets: a canvas of every window, without the known latent frames at its beginning; the first has them all unless there is a `tail`.
      prompts: of every window.
      tail: a clip to go on from, at least `context_length` pictures, which are not given again.
      context_level: how noisy a window is shown its known beginning (1: clean, on the channels of what is known); a little noise keeps errors from adding up.
      row: window i is drawn from (seed, row + i).
    """
    decode, overlap, length = pipeline.decoder(), overlap_of(pipeline), context_length(pipeline)
    for number, (target, prompt) in enumerate(zip(targets, prompts, strict=False)):
        known = None if tail is None else pipeline.encode(tail[-length:])
        if known is not None and number == 0:
            decode(known)  # what the decoder sees of the past
        canvas = target if known is None else joined(held(known, context_level), target)
        latents = pipeline.paint(prompt, canvas, sampling, row=row + number)
        new = decode(latents if known is None else latents[overlap:])
        tail = new if tail is None else np.concatenate([tail[-length:], new])
        yield new


def _forever(value: Any) -> Iterator[Any]:
    while True:
        yield value
