"""Generation tasks on videos longer than a window: going on at either end, transitions, loops, streams and storyboards.

They are methods of `Pipeline`; see `tasks` for what they share. What is known of a clip is not generated, so its pictures are those of
`Pipeline.reconstruct`, or with `keep_pixels` its own.

**Backward.** The autoencoder is causal and its first latent frame is one picture, so the latents of a clip say where it begins, and cannot be put at the end
of a window. The clip's first pictures are encoded again at the place they will have there: behind their first picture, repeated as often as the window has
pictures before them, which is also what the encoder puts in front of a clip. They fill whole latent frames of the window (the last 4 pictures the last one),
so none is made partly of known pictures and partly of new ones. The new pictures lie in front, and a causal decoder makes them of new latents alone; those
of the clip are decoded from its own. What remains is that the encoder saw a standing picture where a moving past will be.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8

from walt.generation import seam
from walt.generation.canvas import Sheet, blank, held, joined
from walt.generation.clips import Clip, as_clip
from walt.generation.request import GenerationError, check_count
from walt.generation.rolling import context_length, overlap_of, roll
from walt.generation.sampling import Sampling

if TYPE_CHECKING:
    from walt.generation.pipeline import Pipeline

Direction = Literal["forward", "backward", "both"]
BACKWARD_ROW, BRIDGE_ROW, MORPH_ROW = 2**20, 2**21, 2**22
"""Windows that are drawn from the same seed for different ends are numbered from these on."""

MOST_TURNS = 16
LONGEST = 10**6
"""Seconds that a video may be asked for, or a shot of a storyboard."""


def extend(
    pipeline: Pipeline,
    video: Clip,
    prompt: str | None,
    seconds: float = 1.0,
    direction: Direction = "forward",
    *,
    clip_fps: float | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """The clip with `seconds` more after its end, before its beginning, or both."""
    if direction not in ("forward", "backward", "both"):
        raise GenerationError(f"direction must be forward, backward or both, got {direction!r}")
    video, options = _clip(pipeline, video, clip_fps), Sampling(**sampling)
    count = check_seconds(pipeline, seconds)
    after = np.concatenate(list(forward(pipeline, video, prompt, count, options))) if direction != "backward" else None
    before = _backward(pipeline, video, prompt, count, options) if direction != "forward" else None
    return _assembled(pipeline, [(before, False), (video, True), (after, False)], keep_pixels)


def connect(
    pipeline: Pipeline,
    first: Clip,
    second: Clip,
    prompt: str | None,
    *,
    seconds: float | None = None,
    num_frames: int | None = None,
    clip_fps: float | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """Both clips with a transition between them: whole latent frames (4 pictures each), which is said; by default a window but for a known one at either end,
    12 pictures of 17."""
    first, second = (_clip(pipeline, clip, clip_fps, what) for clip, what in ((first, "first"), (second, "second")))
    bridge = transition(
        pipeline, first, second, prompt, transition_length(pipeline, seconds, num_frames), Sampling(**sampling)
    )
    return _assembled(pipeline, [(first, True), (bridge, False), (second, True)], keep_pixels)


def loop(
    pipeline: Pipeline,
    prompt: str | None = None,
    *,
    video: Clip | None = None,
    seconds: float | None = None,
    num_frames: int | None = None,
    clip_fps: float | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """A video that repeats without a seam: made so, on a ring of latent frames (see `walt.diffusion.circular`), or a clip with a transition from its end to
    its beginning."""
    if video is not None:
        video = _clip(pipeline, video, clip_fps)
        count = transition_length(pipeline, seconds, num_frames)
        bridge = transition(pipeline, video, video, prompt, count, Sampling(**sampling))
        # The video once more behind the bridge, so that this seam is blended too.
        again = [(video, True)] if keep_pixels else []
        made = _assembled(pipeline, [(video, True), (bridge, False), *again], keep_pixels)
        return made[: len(video) + len(bridge)]
    if keep_pixels:
        raise GenerationError("keep_pixels is for a loop of a video, and none was given")
    frames, *rest = pipeline.latent_shape
    least = (frames - 1) * pipeline.time_factor
    asked = least if num_frames is None and seconds is None else _count(pipeline, seconds, num_frames)
    if asked <= least - pipeline.time_factor:
        raise GenerationError(f"a loop needs {least} frames or more, as many as the model sees at a time")
    length = _whole(pipeline, asked, "loop")
    latents = pipeline.paint(prompt, blank((length, *rest)), Sampling(**sampling), circular=True)
    return decode_ring(pipeline, latents)


def decode_ring(pipeline: Pipeline, latents: np.ndarray) -> Clip:
    """The pictures of a ring of latent frames: of the turn from which on they repeat, when all of the decoder's past is the ring itself."""
    decode = pipeline.decoder()
    decode(latents)
    before, pictures = None, decode(latents)
    for _ in range(MOST_TURNS):
        if before is not None and np.array_equal(before, pictures):
            break
        before, pictures = pictures, decode(latents)
    return pictures


def stream(
    pipeline: Pipeline,
    prompts: str | Iterable[str] | None,
    *,
    video: Clip | None = None,
    num_frames: int | None = None,
    context_noise: float = 0.1,
    clip_fps: float | None = None,
    **sampling: Any,
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Pictures without end, in constant memory, from nothing or on from a `video`.

    Args:
      prompts: one for all, or one for every window (12 pictures of the mini model) from an iterator that may decide late; the last one stays.
      num_frames: how many pictures; None for no end.
      context_noise: time of the noise with which a window is shown the pictures before it: it keeps errors from adding up (drift). 0 shows them clean.
    """
    if not 0 <= context_noise < 1:
        raise GenerationError(f"context_noise must be 0 or more and below 1, got {context_noise}")
    pipeline.check_size()
    options, tail = Sampling(**sampling), None if video is None else _past(pipeline, _clip(pipeline, video, clip_fps))
    if num_frames is not None and isinstance(prompts, (list, tuple)):
        _check_used(pipeline, len(prompts), check_count("num_frames", num_frames), tail is not None)
    level = context_noise or 1.0
    return itertools.islice(
        _pictures(roll(pipeline, _blanks(pipeline, tail), _prompts(prompts), options, tail=tail, context_level=level)),
        num_frames,
    )


def transition(
    pipeline: Pipeline,
    first: Clip,
    second: Clip,
    prompt: str | None,
    latent_frames: int,
    sampling: Sampling,
    *,
    row: int = 0,
) -> Clip:
    """As many latent frames of pictures between two clips: windows that go on from the first, drawn from `row` on, and a last one that knows both ends."""
    frames, time = pipeline.latent_shape[0], pipeline.time_factor
    most, tail, left = frames - 2, first, latent_frames
    if most < 1:
        raise GenerationError(f"a transition needs a model of 3 latent frames or more, and this one has {frames}")
    made: list[Clip] = []
    if left > most:
        fresh = frames - overlap_of(pipeline)
        whole = -(-(left - most) // fresh)
        made = list(itertools.islice(_forward_windows(pipeline, first, prompt, sampling, row), whole))
        tail, left = np.concatenate([first, *made]), left - whole * fresh
    before = min(-(-(frames - left) // 2), 1 + (len(tail) - 1) // time)
    begin = tail[-(1 + (before - 1) * time) :]
    head = pipeline.encode(begin)
    past = np.concatenate([begin, np.repeat(second[:1], left * time, axis=0)])
    end = in_place(pipeline, second, frames - left - before, past)
    canvas = joined(held(head), blank((left, *head.shape[1:])), held(end))
    latents = pipeline.paint(prompt, canvas, sampling, row=BRIDGE_ROW)
    decode = pipeline.decoder()
    decode(latents[:before])
    return np.concatenate([*made, decode(latents[before : before + left])])


def in_place(pipeline: Pipeline, video: Clip, latent_frames: int, before: Clip) -> np.ndarray:
    """So many latent frames of a clip's first pictures as they are behind the pictures `before`, 1 + 4k of them."""
    wanted = latent_frames * pipeline.time_factor
    shown = video[:wanted]
    if len(shown) < wanted:  # a clip that short stands still at its end
        shown = np.concatenate([shown, np.repeat(shown[-1:], wanted - len(shown), axis=0)])
    return pipeline.encode(np.concatenate([before, shown]))[-latent_frames:]


def check_seconds(pipeline: Pipeline, seconds: Any) -> int:
    """The pictures of that time, at least one."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise GenerationError(f"seconds must be a positive number, got {seconds!r}")
    if seconds >= LONGEST:
        raise GenerationError(f"seconds must be below {LONGEST:,}")
    return max(1, round(seconds * pipeline.fps))


def _count(pipeline: Pipeline, seconds: float | None, num_frames: int | None) -> int:
    if seconds is not None and num_frames is not None:
        raise GenerationError("give seconds or num_frames, not both")
    return check_seconds(pipeline, seconds) if num_frames is None else check_count("num_frames", num_frames)


def transition_length(pipeline: Pipeline, seconds: float | None, num_frames: int | None) -> int:
    """Latent frames of a transition of that length, or of as many as fit between one known frame at either end."""
    pipeline.check_size()
    if seconds is None and num_frames is None:
        return max(1, pipeline.latent_shape[0] - 2)
    return _whole(pipeline, _count(pipeline, seconds, num_frames), "transition")


def _whole(pipeline: Pipeline, asked: int, what: str) -> int:
    """The latent frames that hold so many pictures."""
    time = pipeline.time_factor
    length = -(-asked // time)
    if length * time != asked:
        print(f"a {what} of {asked} frames is rounded up to {length * time}: whole latent frames")
    return length


def _clip(pipeline: Pipeline, video: Any, clip_fps: float | None, what: str = "video") -> Clip:
    return as_clip(video, pipeline.check_size(), what=what, clip_fps=clip_fps, fps=pipeline.fps)


def forward(pipeline: Pipeline, video: Clip, prompt: str | None, count: int, sampling: Sampling) -> Iterator[Clip]:
    """`count` pictures that follow a clip."""
    for new in _forward_windows(pipeline, video, prompt, sampling):
        yield new[:count]
        count -= len(new)
        if count <= 0:
            return


def _forward_windows(
    pipeline: Pipeline, video: Clip, prompt: str | None, sampling: Sampling, row: int = 0
) -> Iterator[Clip]:
    video = _past(pipeline, video)
    return roll(pipeline, _blanks(pipeline, video), itertools.repeat(prompt), sampling, tail=video, row=row)


def _past(pipeline: Pipeline, video: Clip) -> Clip:
    """A clip that can be gone on from: one that is too short has stood still before."""
    missing = max(0, context_length(pipeline) - len(video))
    return np.concatenate([np.repeat(video[:1], missing, axis=0), video])


def _backward(pipeline: Pipeline, video: Clip, prompt: str | None, count: int, sampling: Sampling) -> Clip:
    """`count` pictures before a clip."""
    frames, known = pipeline.latent_shape[0], overlap_of(pipeline)
    fresh = 1 + (frames - known - 1) * pipeline.time_factor
    made = video[:0]
    for row in itertools.count(BACKWARD_ROW):
        head = np.concatenate([made, video])[: known * pipeline.time_factor]
        latents = in_place(pipeline, head, known, np.repeat(head[:1], fresh, axis=0))
        canvas = joined(blank((frames - known, *latents.shape[1:])), held(latents))
        new = pipeline.decode(pipeline.paint(prompt, canvas, sampling, row=row)[: frames - known])
        made = np.concatenate([new, made])
        if len(made) >= count:
            return made[-count:]
    raise AssertionError  # the rows do not end


def _blanks(pipeline: Pipeline, tail: Clip | None) -> Iterator[Sheet]:
    """Windows of which nothing is known but their beginning."""
    frames, *rest = pipeline.latent_shape
    following = blank((frames - overlap_of(pipeline), *rest))
    return itertools.chain([] if tail is not None else [blank((frames, *rest))], itertools.repeat(following))


def _prompts(prompts: str | Iterable[str] | None) -> Iterator[str | None]:
    if prompts is None or isinstance(prompts, str):
        yield from itertools.repeat(prompts)
    prompt = None
    for prompt in prompts or ():
        yield prompt
    if prompt is None:
        raise GenerationError("prompts is empty; give at least one prompt")
    yield from itertools.repeat(prompt)


def _check_used(pipeline: Pipeline, prompts: int, num_frames: int, begun: bool) -> None:
    """Refuses prompts of which a stream of so many pictures would never come to the last."""
    fresh = (pipeline.latent_shape[0] - overlap_of(pipeline)) * pipeline.time_factor
    first = fresh if begun else 1 + (pipeline.latent_shape[0] - 1) * pipeline.time_factor
    windows = 1 + max(0, -(-(num_frames - first) // fresh))
    if prompts > windows:
        raise GenerationError(
            f"{num_frames} frames of a stream are made in {windows} window{'s' * (windows != 1)}, each of one prompt, and {prompts} prompts are given"
        )


def _pictures(chunks: Iterable[Clip]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    for chunk in chunks:
        yield from chunk


def _assembled(pipeline: Pipeline, parts: list[tuple[Clip | None, bool]], keep_pixels: bool) -> Clip:
    """Parts one after the other; those that are known as the autoencoder gives them, or as they are."""
    there = [(part, known) for part, known in parts if part is not None and len(part)]
    made = np.concatenate([pipeline.reconstruct(part) if known else part for part, known in there])
    if not keep_pixels:
        return made
    video = np.concatenate([part for part, _ in there])
    known = np.concatenate([np.full(part.shape[:3], known) for part, known in there])
    return seam.keep_pixels(made, video, known)
