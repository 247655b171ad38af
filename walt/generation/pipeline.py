"""From a prompt to a video: tokens, latents by diffusion, pixels by the autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import UInt8

from walt.generation import long_tasks, storyboards, tasks
from walt.generation.bundle import Tree
from walt.generation.canvas import Sheet, blank, held, joined
from walt.generation.codec import multiple
from walt.generation.fit import VideoSize
from walt.generation.generator import Generator
from walt.generation.request import (
    GenerationError,
    check_count,
    check_first_frames,
    check_low_resolution,
    check_numbers,
    check_prompts,
    check_video,
)
from walt.generation.rolling import paint_whole
from walt.generation.sampling import Sampling
from walt.generation.sources import open_bundle
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import read

ROWS_OF_A_VIDEO = 2**12
"""Between the windows of one long video and of the next."""


def load(path: epath.PathLike = "mini", weights: str = "ema", mesh: Mesh | MeshConfig | None = None) -> Pipeline:
    """The `Pipeline` of a shipped model, a bundle (local or `gs://`) or a work directory.

    Args:
      path: "mini", a folder written by `walt convert export`, or the workdir of a training run.
      weights: `ema` (averaged, if there are any) or `raw`, for a work directory; a bundle holds one set.
      mesh: the devices that share the work, see `Pipeline`.

    Raises:
      ConfigError: the mesh does not fit the devices or the model.
      BundleError: nothing usable is there; the message names the file.
    """
    if weights not in ("ema", "raw"):
        raise GenerationError(f"weights must be 'ema' or 'raw', got {weights!r}")
    return Pipeline(open_bundle(path, weights), mesh)  # type: ignore[arg-type]


class Pipeline(Generator):
    """A loaded model. Programs are compiled at the first call for each shape and kept.

    The devices of a mesh share the work as in training: videos are divided over `slice`, `data` and `fsdp`, weights over `fsdp`, the
    positions of a video over `context`, heads over `tensor`. Which devices there are changes a video by rounding alone. In a
    job of several processes each makes the same calls, and has all of the result.

    Attributes:
      video_size: frames, height and width the model was trained to generate; None if it only reconstructs.
      low_size: of a super-resolution model, the size of the videos that it makes larger; None for other models.
      fps: frames per second of its videos.
      class_names: what a model of classes takes for prompts; empty for one that reads text.
      sampler: how it samples unless told otherwise.
      card: what its makers say about it.
    """

    animate = tasks.animate
    predict = tasks.predict
    keyframes = tasks.keyframes
    edit = tasks.edit
    vary = tasks.vary
    interpolate = tasks.interpolate
    inpaint = tasks.inpaint
    outpaint = tasks.outpaint
    extend = long_tasks.extend
    connect = long_tasks.connect
    loop = long_tasks.loop
    stream = long_tasks.stream
    storyboard = storyboards.storyboard

    def generate(
        self,
        prompt: str | Sequence[str] | None,
        *,
        low_resolution: UInt8[np.ndarray, "*n t i j 3"] | None = None,
        first_frames: UInt8[np.ndarray, "*n k h w 3"] | None = None,
        fps: float | None = None,
        motion: float | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        negative_prompt: str | None = None,
        reuse: float | None = None,
        batch_size: int = 16,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Videos of prompts.

        Args:
          prompt: one prompt, or several; of a model of classes, their names; None for a model that reads none. `(red ball:1.3)` in a text
            says two of its words with weight 1.3, see `walt.text.prompt`.
          low_resolution: of a super-resolution model, the video of each prompt in its `low_size`; see `Cascade` for the chain.
          first_frames: of a model that was trained to go on from them, the first frames of each video, in its size: one, or as many as make the latent
            frames that it knows (5 for two of them). They come back as the autoencoder's reconstruction.
          fps, motion: of a model that is told these, frames per second and the mean absolute change between latent frames; None tells nothing.
          num_frames, height, width: size in pixels; by default what the model was trained on. A smaller video is the first frames and the middle of
            a full one, and one frame is a still. A longer one is made in windows that go on from each other, and a larger one by interpolated positions
            and biases; of what the model was not trained on it may know little. A super-resolution model makes no larger ones.
          steps: denoising steps; by default the bundle's.
          guidance: how strongly to follow the prompt, 1 being not at all beyond what was learned; by default the
            bundle's.
          solver: how the steps are taken, see `SamplerConfig`; by default the bundle's.
          seed: video i of a call is drawn from (seed, i), whatever the other prompts and the batch size (up to rounding).
          numbers: of the videos, in place of i: the same many videos, some at a time. Below 2**31, and of longer videos than a window below 2**19.
          negative_prompt: what to steer away from, in place of no text; has no effect with guidance 1.
          reuse: above 0, most of the network is computed anew only in steps where its first layers say more than this that is new, see
            `SamplerConfig`; by default the bundle's.
          batch_size: videos computed at a time, rounded up to a multiple of the devices that divide them.

        Returns:
          uint8 [T, H, W, 3] for one prompt, [N, T, H, W, 3] for a list.

        Raises:
          GenerationError: an argument the model cannot serve.
        """
        size = self.check_size(num_frames, height, width)
        prompts = self._check_prompts(prompt, first_frames, low_resolution)
        sampling = Sampling(steps, guidance, solver, None, seed, negative_prompt, fps, motion, reuse)
        assert self.video_size is not None  # as `check_size` has found
        chained = size.frames > self.video_size.frames
        drawn = check_numbers(
            np.arange(len(prompts)) if numbers is None else numbers, len(prompts), ROWS_OF_A_VIDEO if chained else 1
        )
        small = check_low_resolution(low_resolution, len(prompts), self.low_size, self.video_size)
        first = check_first_frames(first_frames, len(prompts), self.video_size, self._known_lengths())
        shape = self._latent_shape(size)
        if any(made > asked for made, asked in zip(self.size_of(shape), size, strict=True)):
            print(
                f"{size} is rounded up to {self.size_of(shape)}, which is what the model makes, and cropped back to the first frames and "
                "the middle of the picture"
            )
        canvas = None
        if first is not None:
            known = held(self.encode(first))
            frames = self.latent_frames(size.frames) if chained else shape[0]
            canvas = joined(known, blank((len(first), frames - known.frames, *shape[1:])))
        if chained:
            return crop(self._chained(prompts, canvas, shape, size.frames, sampling, drawn), size)[
                0 if isinstance(prompt, str) else slice(None)
            ]
        order = self._order(prompt, prompts, shape, sampling, drawn, canvas=canvas, low_resolution=small)
        # The decoder is causal: later latents do not change the frames that are asked for.
        needed = 1 + math.ceil((size.frames - 1) / self._autoencoder.time_factor)
        batches = self._batches(order, check_count("batch_size", batch_size))
        videos = [read(self._decode(latents[:, :needed])) for latents in batches]
        video = crop(np.concatenate(videos)[: len(prompts)], size)
        alone = first_frames if first_frames is not None else low_resolution
        single = isinstance(prompt, str) or (prompt is None and alone is not None and alone.ndim == 4)
        return video[0] if single else video

    @property
    def reads_prompts(self) -> bool:
        """Whether it makes a video of a prompt or a class; a model that does not goes on from frames."""
        return self.video_size is not None and self._read_prompts is not None

    def describe(self) -> str:
        """One line: which parts, and how large."""
        parts = {"autoencoder": self._autoencoder_weights[0]} | (self._generator_weights[0] if self.video_size else {})
        text = ", ".join(f"{name.replace('_', ' ')} {_millions(tree)}" for name, tree in parts.items())
        return f"{text}; generates {self.video_size}" if self.video_size else text

    def _chained(
        self,
        prompts: Sequence[str],
        canvas: Sheet | None,
        shape: tuple[int, ...],
        frames: int,
        sampling: Sampling,
        numbers: np.ndarray,
    ) -> UInt8[np.ndarray, "n t h w 3"]:
        """Videos of more frames than a window has, one after the other."""
        empty = blank((self.latent_frames(frames), *shape[1:]))
        videos = []
        for index, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
            known = empty if canvas is None else Sheet(*(rows[index] for rows in canvas))
            videos.append(paint_whole(self, known, prompt or None, sampling, row=int(number) * ROWS_OF_A_VIDEO))
        return np.stack(videos)

    def _latent_shape(self, size: VideoSize) -> tuple[int, int, int, int]:
        """Of the latents that `size` is cropped from: those the model was trained on, or larger ones; a still has one frame."""
        transformer, space = self._generator.transformer, self._autoencoder.space_factor
        frames, height, width = transformer.latent_shape
        if size.frames == 1 and self.low_size is None:
            frames = 1
        if size.height > height * space or size.width > width * space:
            height, width = (multiple(-(-side // space), transformer.patch) for side in size[1:])
        return frames, height, width, transformer.out_channels

    def _known_lengths(self) -> list[int]:
        """How many first frames it goes on from; none if it was not trained to."""
        known = self._generator.diffusion.known_frames if self._generator.transformer.canvas else ()
        return [1 + (frames - 1) * self._autoencoder.time_factor for frames in known]

    def _check_prompts(self, prompt: Any, first_frames: Any, low_resolution: Any) -> list[str]:
        """A prompt for each video, "" for a model that reads none."""
        if self._read_prompts is not None:
            if prompt is None:
                raise GenerationError("prompt must be a string or a list of strings for this model, got None")
            return check_prompts(prompt)
        alone = first_frames if first_frames is not None else low_resolution
        if prompt is not None or alone is None:
            raise GenerationError(
                "this model reads no prompt: give None, and the frames that it is to go on from (first_frames) or to make larger"
            )
        check_video(alone)
        return [""] * (1 if alone.ndim == 4 else len(alone))


def crop(video: np.ndarray, size: VideoSize) -> np.ndarray:
    """The first frames and the middle of the picture of a video, or of several."""
    top, left = (video.shape[-3] - size.height) // 2, (video.shape[-2] - size.width) // 2
    return video[..., : size.frames, top : top + size.height, left : left + size.width, :]


def _millions(tree: Tree) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f}M"
