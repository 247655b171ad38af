"""Generation tasks on one clip: each lays out a canvas, has it painted, and knows nothing of samplers or models.

They are methods of `Pipeline`. `sampling` are the options of `Sampling`: steps, guidance, solver, seed, negative_prompt and so on. Clips are uint8
[T, H, W, 3]; those of another size or frame rate (`clip_fps`) are converted, and a line says so. What is known comes back as the autoencoder's own
reconstruction or, with `keep_pixels`, as the very pixels, with a blended seam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from walt.generation import seam
from walt.generation.canvas import begun, blank, held, joined, latent_mask
from walt.generation.clips import Clip, as_clip, as_mask, as_picture, check_clip
from walt.generation.fit import VideoSize, fit
from walt.generation.request import GenerationError, check_count
from walt.generation.rolling import context_length, paint_whole
from walt.generation.sampling import Sampling

if TYPE_CHECKING:
    from walt.generation.pipeline import Pipeline


def animate(
    pipeline: Pipeline,
    image: UInt8[np.ndarray, "h w 3"],
    prompt: str | None,
    *,
    num_frames: int | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """A video that begins with a picture."""
    return keyframes(pipeline, {0: image}, prompt, num_frames=num_frames, keep_pixels=keep_pixels, **sampling)


def predict(
    pipeline: Pipeline,
    video: Clip,
    prompt: str | None,
    *,
    num_frames: int | None = None,
    clip_fps: float | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """How a clip goes on: its last pictures (5, or the last one of a shorter clip), and what may follow them, `num_frames` in all."""
    size = pipeline.check_size(num_frames)
    video = as_clip(video, size, clip_fps=clip_fps, fps=pipeline.fps)
    length = context_length(pipeline)
    known = video[-length:] if len(video) >= length else video[-1:]
    if size.frames <= len(known):
        raise GenerationError(
            f"num_frames must be more than the {len(known)} that predict is given of the video, got {size.frames}"
        )
    latents = held(pipeline.encode(known))
    canvas = joined(latents, blank((pipeline.latent_frames(size.frames) - latents.frames, *latents.known.shape[1:])))
    made = paint_whole(pipeline, canvas, prompt, Sampling(**sampling))[: size.frames]
    return _kept(made, {frame: picture for frame, picture in enumerate(known)}) if keep_pixels else made


def keyframes(
    pipeline: Pipeline,
    keyframes: Mapping[int, UInt8[np.ndarray, "h w 3"]],
    prompt: str | None,
    *,
    num_frames: int | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """A video through pictures at given frames, from 0 on.

    But for the first, a latent frame stands for several pictures: where one of them is given, all of them are that picture. It is encoded behind the pictures
    before it, each standing until the next, as the encoder sees the past.
    """
    size = pipeline.check_size(num_frames)
    if not isinstance(keyframes, Mapping) or not keyframes:
        raise GenerationError("keyframes must be pictures by their frame, such as {0: first, 16: last}, got none")
    for frame in keyframes:
        if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)) or not 0 <= frame < size.frames:
            raise GenerationError(f"keyframes: frame {frame!r} is none of the video's, 0 to {size.frames - 1}")
    time, length = pipeline.time_factor, pipeline.latent_frames(size.frames)
    still = {int(frame): as_picture(picture, size, f"keyframe {frame}")[0] for frame, picture in keyframes.items()}
    places = {math.ceil(frame / time): still[frame] for frame in sorted(still)}
    if len(places) < len(still):
        raise GenerationError(
            f"keyframes {sorted(still)} are too close together: frames 1 to {time}, {time + 1} to {2 * time} and so on take one each"
        )
    first = places[min(places)]
    shown = [places.get(0, first)]
    for place in range(1, length):
        shown += [places.get(place, shown[-1])] * time
    canvas = held(pipeline.encode(np.stack(shown)))
    canvas.mask[[place for place in range(length) if place not in places]] = 0
    made = paint_whole(pipeline, canvas, prompt, Sampling(**sampling))[: size.frames]
    return _kept(made, still) if keep_pixels else made


def edit(
    pipeline: Pipeline,
    video: Clip,
    prompt: str | None,
    *,
    strength: float = 0.5,
    clip_fps: float | None = None,
    **sampling: Any,
) -> Clip:
    """SDEdit (Meng et al. 2022): the clip painted over from that amount of noise. 0 is its reconstruction, 1 forgets it."""
    video, crop = _fitted(pipeline, video, clip_fps)
    canvas = begun(pipeline.encode(video), check_strength(strength))
    return crop(paint_whole(pipeline, canvas, prompt, Sampling(**sampling)))


def vary(
    pipeline: Pipeline,
    video: Clip,
    seed: int,
    *,
    prompt: str | None = None,
    strength: float = 0.6,
    clip_fps: float | None = None,
    **sampling: Any,
) -> Clip:
    """Another video like this one: an edit without a new prompt, another for each seed."""
    return edit(pipeline, video, prompt, strength=strength, clip_fps=clip_fps, seed=seed, **sampling)


def interpolate(
    pipeline: Pipeline,
    video: Clip,
    factor: int = 2,
    *,
    prompt: str | None = None,
    strength: float = 0.4,
    clip_fps: float | None = None,
    keep_pixels: bool = True,
    **sampling: Any,
) -> Clip:
    """The clip with `factor` times as many frames per second as the model makes, `(T - 1) factor + 1` of T in all.

    Pictures between two are begun as their mixture, and painted over from `strength` on. Latent frames stand for several pictures, so none is known as a
    whole; with `keep_pixels` the pictures of the clip come back exactly, and those between them follow.
    """
    if check_count("factor", factor) < 2:
        raise GenerationError(f"factor must be 2 or more, got {factor}")
    video = as_clip(video, pipeline.check_size(), clip_fps=clip_fps, fps=pipeline.fps)
    if len(video) < 2:
        raise GenerationError(f"interpolate needs a video of at least 2 frames at {pipeline.fps:g} fps, got 1")
    share = (np.arange((len(video) - 1) * factor) % factor / factor).astype(np.float32)[:, None, None, None]
    before, after = (np.repeat(part.astype(np.float32), factor, axis=0) for part in (video[:-1], video[1:]))
    mixed = np.concatenate([np.round((1 - share) * before + share * after).astype(np.uint8), video[-1:]])
    made = edit(pipeline, mixed, prompt, strength=strength, **sampling)
    return _kept(made, {frame * factor: picture for frame, picture in enumerate(video)}) if keep_pixels else made


def inpaint(
    pipeline: Pipeline,
    video: Clip,
    mask: np.ndarray,
    prompt: str | None,
    *,
    clip_fps: float | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """The clip with what `mask` marks (True, [T, H, W] or [H, W]) painted anew.

    A latent position is known if all its pixels are. The encoder sees a blur of the surroundings in place of what is marked. The mask is that of the clip in
    the model's size.
    """
    video, crop = _fitted(pipeline, video, clip_fps)
    size = crop(video).shape[0]
    wanted = as_mask(mask, video[:size])
    known = np.concatenate([~wanted, np.repeat(~wanted[-1:], len(video) - size, axis=0)])
    return crop(_painted_around(pipeline, video, known, prompt, keep_pixels, Sampling(**sampling)))


def outpaint(
    pipeline: Pipeline,
    video: Clip,
    height: int,
    width: int,
    prompt: str | None,
    *,
    clip_fps: float | None = None,
    keep_pixels: bool = False,
    **sampling: Any,
) -> Clip:
    """The clip, at its own scale, as the middle of a picture of `height` x `width`. What is added on each side is rounded to whole latent positions."""
    check_clip(video)
    pipeline.check_size()
    video = as_clip(video, VideoSize(*video.shape[:3]), clip_fps=clip_fps, fps=pipeline.fps)
    space, unit = pipeline.space_factor, pipeline.space_factor * pipeline.patch
    asked = check_count("height", height), check_count("width", width)
    sides = [-(-side // unit) * unit for side in asked]
    if any(side < inner for side, inner in zip(asked, video.shape[1:3])) or asked == video.shape[1:3]:
        raise GenerationError(
            f"outpaint needs a size larger than the video's {video.shape[1]}x{video.shape[2]}, got {height}x{width}"
        )
    if tuple(sides) != asked:
        print(f"{asked[0]}x{asked[1]} is rounded up to {sides[0]}x{sides[1]}, a size that the model takes")
    before = [(side - inner) // 2 // space * space for side, inner in zip(sides, video.shape[1:3])]
    padded, _ = fit(video, pipeline.time_factor, 1)
    margins = [(start, side - inner - start) for start, side, inner in zip(before, sides, video.shape[1:3])]
    large = np.pad(padded, ((0, 0), *margins, (0, 0)))
    known = np.pad(np.ones(padded.shape[:3], bool), ((0, 0), *margins))
    made = _painted_around(pipeline, large, known, prompt, keep_pixels, Sampling(**sampling))
    return made[: len(video)]


def check_strength(strength: Any) -> float:
    """Refuses what is no number from 0 to 1."""
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength <= 1:
        raise GenerationError(f"strength must be a number from 0 (the reconstruction) to 1 (all new), got {strength!r}")
    return float(strength)


def _painted_around(
    pipeline: Pipeline, video: Clip, known: np.ndarray, prompt: str | None, keep_pixels: bool, sampling: Sampling
) -> Clip:
    canvas = held(pipeline.encode(seam.filled(video, known)))
    mask = latent_mask(known, pipeline.time_factor, pipeline.space_factor)
    made = paint_whole(pipeline, canvas._replace(mask=mask), prompt, sampling)
    return seam.keep_pixels(made, video, known) if keep_pixels else made


def _fitted(pipeline: Pipeline, video: Any, clip_fps: float | None) -> tuple[Clip, Any]:
    """The clip in the model's size and of 1 + 4k frames, and what crops a result back."""
    clip = as_clip(video, pipeline.check_size(), clip_fps=clip_fps, fps=pipeline.fps)
    return fit(clip, pipeline.time_factor, pipeline.space_factor)


def _kept(made: Clip, pictures: Mapping[int, UInt8[np.ndarray, "h w 3"]]) -> Clip:
    video, known = made.copy(), np.zeros(made.shape[:3], bool)
    for frame, picture in pictures.items():
        video[frame], known[frame] = picture, True
    return seam.keep_pixels(made, video, known)
