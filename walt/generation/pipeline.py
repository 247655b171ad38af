"""From a prompt to a video: tokens, latents by diffusion, pixels by the autoencoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from walt.config import ConfigError, nearest
from walt.diffusion.canvas import Canvas
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.generation import long_tasks, programs, storyboards, tasks
from walt.generation.bundle import Bundle, BundleError, Tree
from walt.generation.canvas import Sheet, blank, held, joined, stacked
from walt.generation.codec import Codec, multiple
from walt.generation.fit import VideoSize
from walt.generation.given import Given
from walt.generation.parts import component_of, config_of, place_weights
from walt.generation.request import (
    GenerationError,
    check_count,
    check_first_frames,
    check_low_resolution,
    check_negative,
    check_prompts,
    check_scalars,
    check_seed,
    check_video,
)
from walt.generation.rolling import paint_whole
from walt.generation.sampling import DEFAULT, Order, Sampling
from walt.generation.sources import open_bundle
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_shards, make_mesh, read
from walt.text.config import TextEncoderConfig
from walt.text.tokenizer import read_tokenizer
from walt.transformer.config import TransformerConfig
from walt.transformer.resize import resize, resized_config
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

DEFAULT_FPS = 8.0  # W.A.L.T's
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


class Pipeline(Codec):
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

    def __init__(self, bundle: Bundle, mesh: Mesh | MeshConfig | None = None):
        """On all devices of all processes, each with videos of its own unless `mesh` says otherwise.

        Raises `BundleError` if the parts do not fit each other, `ConfigError` if the mesh does not fit them or the devices.
        """
        super().__init__(bundle, mesh if isinstance(mesh, Mesh) else make_mesh(mesh or MeshConfig()))
        self.card, self.licences = bundle.card, bundle.licences
        self.fps = float(bundle.card.get("fps", DEFAULT_FPS))
        self.video_size: VideoSize | None = None
        self.low_size: VideoSize | None = None
        self.class_names: tuple[str, ...] = ()
        self._resized: dict[TransformerConfig, programs.Weights] = {}
        if "transformer" in bundle.components:
            self._load_generator(bundle)

    def _load_generator(self, bundle: Bundle) -> None:
        transformer = config_of(TransformerConfig, component_of(bundle, "transformer").config, "transformer")
        reads = transformer.text_width is not None
        parts = {name: component_of(bundle, name) for name in ("transformer", *(("text_encoder",) if reads else ()))}
        if reads and bundle.tokenizer is None:
            raise BundleError("the bundle has a transformer but no tokenizer, so it cannot read prompts")
        text = config_of(TextEncoderConfig, parts["text_encoder"].config, "text_encoder") if reads else None
        diffusion = config_of(DiffusionConfig, bundle.diffusion, "diffusion")
        if len(diffusion.class_names) != (transformer.num_classes or 0):
            raise BundleError(
                f"the transformer has {transformer.num_classes or 0} classes, the bundle names {len(diffusion.class_names)}"
            )
        if transformer.out_channels != self._autoencoder.latent_channels:
            raise BundleError(
                f"the transformer makes latents of {transformer.out_channels} channels, "
                f"the autoencoder has {self._autoencoder.latent_channels}"
            )
        self._tokenizer = read_tokenizer(bundle.tokenizer) if bundle.tokenizer is not None and reads else None
        self._generator = programs.GeneratorConfig(transformer, text, diffusion)
        self.class_names = diffusion.class_names
        self.sampler = config_of(SamplerConfig, bundle.sampler, "sampler")
        if transformer.low_resolution is not None:
            try:
                self.sampler.check_low_resolution(diffusion)
            except ConfigError as error:
                raise BundleError(f"the bundle's sampler config cannot be used: {error}") from error
        check_mesh(transformer, self.mesh.shape)
        params = {name: part.params for name, part in parts.items()}
        extra = {name: part.extra for name, part in parts.items() if part.extra}
        abstract = programs.denoiser(transformer, text)
        what = "transformer and text encoder"
        self._generator_weights = place_weights(abstract, params, extra, what, self.mesh, PARAMETER_AXES)
        frames, height, width = transformer.latent_shape
        time, space = self._autoencoder.time_factor, self._autoencoder.space_factor
        self.video_size = VideoSize(1 + (frames - 1) * time, height * space, width * space)
        if (factor := transformer.low_resolution) is not None:
            self.low_size = self.video_size._replace(
                height=self.video_size.height // factor, width=self.video_size.width // factor
            )

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
        negative_prompt: str | None = None,
        batch_size: int = 16,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Videos of prompts.

        Args:
          prompt: one prompt, or several; of a model of classes, their names; None for a model that reads none.
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
          negative_prompt: what to steer away from, in place of no text; has no effect with guidance 1.
          batch_size: videos computed at a time, rounded up to a multiple of the devices that divide them.

        Returns:
          uint8 [T, H, W, 3] for one prompt, [N, T, H, W, 3] for a list.

        Raises:
          GenerationError: an argument the model cannot serve.
        """
        size = self.check_size(num_frames, height, width)
        prompts = self._check_prompts(prompt, first_frames, low_resolution)
        sampling = Sampling(steps, guidance, solver, None, seed, negative_prompt, fps, motion)
        small = check_low_resolution(low_resolution, len(prompts), self.low_size, self.video_size)
        assert self.video_size is not None  # as `check_size` has found
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
            frames = self.latent_frames(size.frames) if size.frames > self.video_size.frames else shape[0]
            canvas = joined(known, blank((len(first), frames - known.frames, *shape[1:])))
        if size.frames > self.video_size.frames:
            return crop(self._chained(prompts, canvas, shape, size.frames, sampling, isinstance(prompt, str)), size)
        order = self._order(prompt, prompts, shape, sampling, canvas=canvas, low_resolution=small)
        # The decoder is causal: later latents do not change the frames that are asked for.
        needed = 1 + math.ceil((size.frames - 1) / self._autoencoder.time_factor)
        batches = self._batches(order, check_count("batch_size", batch_size))
        videos = [read(self._decode(latents[:, :needed])) for latents in batches]
        video = crop(np.concatenate(videos)[: len(prompts)], size)
        alone = first_frames if first_frames is not None else low_resolution
        single = isinstance(prompt, str) or (prompt is None and alone is not None and alone.ndim == 4)
        return video[0] if single else video

    def describe(self) -> str:
        """One line: which parts, and how large."""
        parts = {"autoencoder": self._autoencoder_weights[0]} | (self._generator_weights[0] if self.video_size else {})
        text = ", ".join(f"{name.replace('_', ' ')} {_millions(tree)}" for name, tree in parts.items())
        return f"{text}; generates {self.video_size}" if self.video_size else text

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

    def paint(
        self,
        prompt: str | Sequence[str] | None,
        canvas: Sheet,
        sampling: Sampling = DEFAULT,
        *,
        circular: bool = False,
        row: int = 0,
        batch_size: int = 16,
    ) -> Float[np.ndarray, "*n f h w c"]:
        """Latents of prompts where a canvas leaves them open: what every task comes down to.

        Args:
          prompt: one for each canvas, or one; None for none, even of a model that reads prompts.
          canvas: of one video, or of several; any height and width that patches divide. It has as many latent frames as the model, or one: a still.
          sampling: steps, guidance, seed and so on.
          circular: the frames are a ring of any length, without a first.
          row: canvas i is drawn from (seed, row + i).

        Raises:
          GenerationError: an argument the model cannot serve.
        """
        self.check_size()
        several = canvas.known.ndim == 5
        canvas = canvas if several else stacked([canvas])
        count, frames, height, width, channels = canvas.known.shape
        asked = [prompt] * count if prompt is None or isinstance(prompt, str) else list(prompt)
        if prompt is None and (self._tokenizer is not None or self.class_names):
            asked, sampling = [self.class_names[0] if self.class_names else "video"] * count, sampling.unprompted()
        told = None if asked[0] is None else asked
        order = self._order(
            told, asked, (frames, height, width, channels), sampling, canvas=canvas, circular=circular, row=row
        )
        latents = np.concatenate([read(latents) for latents in self._batches(order, batch_size)])[:count]
        return latents if several else latents[0]

    def _order(
        self, prompt: Any, prompts: Sequence[Any], shape: tuple[int, int, int, int], sampling: Sampling, **given: Any
    ) -> Order:
        """All that a batch of videos is made of, checked."""
        if prompt is None and sampling.negative_prompt is not None:
            raise GenerationError("negative_prompt is for a model that reads prompts")
        if prompt is None and sampling.guidance not in (None, 1):
            raise GenerationError("guidance is for a model that reads prompts")
        scalars = check_scalars(self._generator.transformer.scalars, fps=sampling.fps, motion=sampling.motion)
        sampler = sampling.sampler(self.sampler, self._generator.diffusion.make_schedule(shape))
        check_seed(sampling.seed)
        negative = sampling.negative_prompt
        if negative is not None and sampler.guidance == 1:
            print("negative_prompt has no effect with guidance 1, where nothing is steered away from")
        away = None if negative is None else self._read([check_negative(negative)], "negative_prompt")
        told = None if prompt is None else self._read(prompts, "prompt")
        return Order(shape, len(prompts), told, away, sampler, sampling.seed, scalars, **given)

    def _chained(
        self,
        prompts: Sequence[str],
        canvas: Sheet | None,
        shape: tuple[int, ...],
        frames: int,
        sampling: Sampling,
        alone: bool,
    ) -> UInt8[np.ndarray, "*n t h w 3"]:
        """Videos of more frames than a window has, one after the other."""
        empty = blank((self.latent_frames(frames), *shape[1:]))
        videos = []
        for number, prompt in enumerate(prompts):
            known = empty if canvas is None else Sheet(*(rows[number] for rows in canvas))
            videos.append(paint_whole(self, known, prompt or None, sampling, row=number * ROWS_OF_A_VIDEO))
        return videos[0] if alone else np.stack(videos)

    def _batches(self, order: Order, batch_size: int) -> Iterator[jax.Array]:
        """Latents of so many rows at a time; the last are filled up with the last row, so that there is one shape to compile."""
        rows = multiple(min(batch_size, order.count), batch_shards(self.mesh))
        sampler, strength = order.sampler, None
        if sampler.guidance != 1 and order.prompts is not None:
            # Traced, so that another strength needs no compilation.
            strength, sampler = np.float32(sampler.guidance), dataclasses.replace(sampler, guidance=0.0)
        config, weights = self._sized(order.shape[1:3])
        for start in range(0, order.count, rows):
            chosen = np.minimum(np.arange(start, start + rows), order.count - 1)
            pick = lambda tree: jax.tree.map(lambda array: self._rows(array[chosen]), tree)  # noqa: B023, E731
            negative = None
            if strength is not None and order.negative is not None:
                negative = self._rows(jax.tree.map(lambda array: np.repeat(array, rows, axis=0), order.negative))
            canvas = None if order.canvas is None else Canvas(*pick(tuple(order.canvas)))
            if canvas is not None and order.canvas is not None and np.all(order.canvas.level == 1):
                canvas = canvas._replace(level=None)  # which every step would have to look at
            given = Given(
                None if order.low_resolution is None else self._encode(order.low_resolution[chosen]),
                canvas,
                {name: self._rows(np.full(rows, value, np.float32)) for name, value in order.scalars.items()},
            )
            with jax.set_mesh(self.mesh):
                keys = programs.row_keys(np.uint32(order.seed), self._rows((chosen + order.row).astype(np.int32)))
                yield programs.sample_latents(
                    config,
                    sampler,
                    weights,
                    pick(order.prompts),
                    keys,
                    strength,
                    negative,
                    given,
                    frames=order.shape[0],
                    circular=order.circular,
                )

    def _sized(self, sides: tuple[int, int]) -> tuple[programs.GeneratorConfig, programs.Weights]:
        """The generator for latents of this height and width: position tables and biases interpolated, see `resize`."""
        config = resized_config(self._generator.transformer, sides)
        if config == self._generator.transformer:
            return self._generator, self._generator_weights
        if config not in self._resized:
            params, extra = self._generator_weights
            params = {**params, "transformer": resize(params["transformer"], self._generator.transformer, config)}
            abstract = programs.denoiser(config, self._generator.text)
            self._resized[config] = place_weights(abstract, params, extra, "transformer", self.mesh, PARAMETER_AXES)
        return self._generator._replace(transformer=config), self._resized[config]

    def size_of(self, shape: tuple[int, ...]) -> VideoSize:
        """Of the video of latents of `shape` (F, h, w, …)."""
        time, space = self._autoencoder.time_factor, self._autoencoder.space_factor
        return VideoSize(1 + (shape[0] - 1) * time, shape[1] * space, shape[2] * space)

    def _latent_shape(self, size: VideoSize) -> tuple[int, int, int, int]:
        """Of the latents that `size` is cropped from: those the model was trained on, or larger ones; a still has one frame."""
        transformer, space = self._generator.transformer, self._autoencoder.space_factor
        frames, height, width = transformer.latent_shape
        if size.frames == 1 and self.low_size is None:
            frames = 1
        if size.height > height * space or size.width > width * space:
            height, width = (multiple(-(-side // space), transformer.patch) for side in size[1:])
        return frames, height, width, transformer.out_channels

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Latents of the videos the model was trained to make: frames, height, width and channels."""
        frames, height, width = self._generator.transformer.latent_shape
        return frames, height, width, self._generator.transformer.out_channels

    @property
    def patch(self) -> int:
        """Latent positions that a side of one token covers."""
        return self._generator.transformer.patch

    @property
    def conditioning(self) -> str:
        """How known latents act on the others: by a `canvas`, or, of a model that was trained without, by `replacement`."""
        return "canvas" if self._generator.transformer.canvas else "replacement"

    def _known_lengths(self) -> list[int]:
        """How many first frames it goes on from; none if it was not trained to."""
        known = self._generator.diffusion.known_frames if self._generator.transformer.canvas else ()
        return [1 + (frames - 1) * self._autoencoder.time_factor for frames in known]

    def _check_prompts(self, prompt: Any, first_frames: Any, low_resolution: Any) -> list[str]:
        """A prompt for each video, "" for a model that reads none."""
        if self._tokenizer is not None or self.class_names:
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

    def _read(self, texts: Sequence[str], what: str) -> tuple[np.ndarray, np.ndarray] | np.ndarray:
        """(token ids, mask) of texts, or the labels of class names."""
        if self._tokenizer is None:
            return self._labels(texts, what)
        length = self._generator.diffusion.caption_length
        _, longer = self._tokenizer(texts, length + 1)
        for text, mask in zip(texts, longer):
            if mask[-1]:
                print(f"{what} is longer than the {length} tokens the model reads; the end of {text!r} is cut off")
        return self._tokenizer(texts, length)

    def _labels(self, names: Sequence[str], what: str) -> np.ndarray:
        classes = self.class_names
        for name in names:
            if name not in classes:
                raise GenerationError(
                    f"{what}: this model knows classes, and {name!r} is none of them{nearest(name, classes)}"
                )
        return np.array([classes.index(name) for name in names], np.int32)

    def check_size(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> VideoSize:
        """The size of a video that is asked for, None being what the model makes. Raises `GenerationError` if it cannot be made."""
        full = self.video_size
        if full is None:
            raise GenerationError("this bundle holds an autoencoder alone: it can reconstruct, but not generate")
        asked = VideoSize(
            *(
                default if value is None else check_count(name, value)
                for name, value, default in zip(("num_frames", "height", "width"), (num_frames, height, width), full)
            )
        )
        if self.low_size is not None and any(a > b for a, b in zip(asked, full)):
            raise GenerationError(f"this model makes at most {full}, got a request for {asked}")
        return asked


def crop(video: np.ndarray, size: VideoSize) -> np.ndarray:
    """The first frames and the middle of the picture of a video, or of several."""
    top, left = (video.shape[-3] - size.height) // 2, (video.shape[-2] - size.width) // 2
    return video[..., : size.frames, top : top + size.height, left : left + size.width, :]


def _millions(tree: Tree) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f}M"
