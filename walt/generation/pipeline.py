"""From a prompt to a video: tokens, latents by diffusion, pixels by the autoencoder."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from walt.autoencoder import Tiling, stream_decode, stream_encode
from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import to_float, to_uint8
from walt.config import ConfigError
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.generation import programs
from walt.generation.bundle import Bundle, BundleError, Tree
from walt.generation.fit import VideoSize, fit, fit_stream
from walt.generation.given import Given
from walt.generation.parts import component_of, config_of, model_checksum, place_weights
from walt.generation.prompts import ClassReader, TextReader
from walt.generation.request import (
    GenerationError,
    check_count,
    check_first_frames,
    check_low_resolution,
    check_negative,
    check_numbers,
    check_prompts,
    check_scalars,
    check_seed,
    check_video,
)
from walt.generation.sources import open_bundle
from walt.generation.watching import Moment, watcher
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_sharding, batch_shards, make_mesh, put, read
from walt.text.config import TextEncoderConfig
from walt.text.tokenizer import read_tokenizer
from walt.transformer.config import TransformerConfig
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

DEFAULT_FPS = 8.0  # W.A.L.T's


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


class Pipeline:
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
        self.mesh = mesh if isinstance(mesh, Mesh) else make_mesh(mesh or MeshConfig())
        self.card, self.licences = bundle.card, bundle.licences
        self.fps = float(bundle.card.get("fps", DEFAULT_FPS))
        part = component_of(bundle, "autoencoder")
        self._autoencoder = config_of(AutoencoderConfig, part.config, "autoencoder")
        abstract = programs.autoencoder(self._autoencoder)
        self._autoencoder_weights = place_weights(abstract, part.params, part.extra, "autoencoder", self.mesh)
        self._autoencoder_part = part
        self.video_size: VideoSize | None = None
        self.low_size: VideoSize | None = None
        self.class_names: tuple[str, ...] = ()
        self._read_prompts: TextReader | ClassReader | None = None
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
        if bundle.tokenizer is not None and reads:
            tokenizer = read_tokenizer(bundle.tokenizer)
            self._read_prompts = TextReader(tokenizer, self._generator, self._generator_weights, self.mesh)
        elif self.class_names:
            self._read_prompts = ClassReader(self.class_names)
        frames, height, width = transformer.latent_shape
        time, space = self._autoencoder.time_factor, self._autoencoder.space_factor
        self.video_size = VideoSize(1 + (frames - 1) * time, height * space, width * space)
        if (factor := transformer.low_resolution) is not None:
            self.low_size = self.video_size._replace(
                height=self.video_size.height // factor, width=self.video_size.width // factor
            )

    @functools.cached_property
    def checksum(self) -> str:
        """What tells this model from another: SHA-256 over its weights and all else that its videos depend on, whatever it was loaded
        from. Every process must ask for it."""
        configs: list[Any] = [self._autoencoder]
        weights = {"autoencoder": _as_tree(self._autoencoder_weights)}
        if self.video_size is not None:
            configs += [*filter(None, self._generator), self.sampler]
            weights["generator"] = _as_tree(self._generator_weights)
        return model_checksum(configs, weights, getattr(self._read_prompts, "tokenizer", b""))

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
          num_frames, height, width: size in pixels; by default, and at most, what the model was trained on. A smaller
            video is the first frames and the middle of a full one.
          steps: denoising steps; by default the bundle's.
          guidance: how strongly to follow the prompt, 1 being not at all beyond what was learned; by default the
            bundle's.
          solver: how the steps are taken, see `SamplerConfig`; by default the bundle's.
          seed: video i of a call is drawn from (seed, i), whatever the other prompts and the batch size (up to rounding).
          numbers: of the videos, in place of i: the same many videos, some at a time.
          negative_prompt: what to steer away from, in place of no text; has no effect with guidance 1.
          batch_size: videos computed at a time, rounded up to a multiple of the devices that divide them.

        Returns:
          uint8 [T, H, W, 3] for one prompt, [N, T, H, W, 3] for a list.

        Raises:
          GenerationError: an argument the model cannot serve.
        """
        size = self.check_size(num_frames, height, width)
        prompts = self._check_prompts(prompt, first_frames, low_resolution)
        if negative_prompt is not None and prompt is None:
            raise GenerationError("negative_prompt is for a model that reads prompts")
        if prompt is None and guidance not in (None, 1):
            raise GenerationError("guidance is for a model that reads prompts")
        small = check_low_resolution(low_resolution, len(prompts), self.low_size, self.video_size)
        assert self.video_size is not None  # as `check_size` has found
        first = check_first_frames(first_frames, len(prompts), self.video_size, self._known_lengths())
        scalars = check_scalars(self._generator.transformer.scalars, fps=fps, motion=motion)
        if size != self.video_size:
            print(
                f"{size} is rounded up to {self.video_size}, which is what the model makes, and cropped back to the first frames and "
                "the middle of the picture"
            )
        sampler = self.sampler_with(steps, guidance, solver)
        check_seed(seed)
        drawn = np.arange(len(prompts)) if numbers is None else check_numbers(numbers, len(prompts))
        negative = self._read(None if negative_prompt is None else [check_negative(negative_prompt)], "negative_prompt")
        if negative_prompt is not None and sampler.guidance == 1:
            print("negative_prompt has no effect with guidance 1, where nothing is steered away from")
        told = self._read(None if prompt is None else prompts, "prompt")
        rows = _multiple(min(check_count("batch_size", batch_size), len(prompts)), batch_shards(self.mesh))
        videos = []
        for start in range(0, len(prompts), rows):
            # The last batch is filled up with its last prompt, so that there is one shape to compile.
            chosen = np.minimum(np.arange(start, start + rows), len(prompts) - 1)
            given = Given(
                None if small is None else self._encode(small[chosen]),
                None if first is None else self._encode(first[chosen]),
                {name: self._rows(np.full(rows, value, np.float32)) for name, value in scalars.items()},
            )
            texts = None if told is None else jax.tree.map(lambda array: array[chosen], told)  # noqa: B023
            videos.append(self._videos(texts, seed, drawn[chosen], sampler, negative, given, size.frames))
        video = _crop(np.concatenate(videos)[: len(prompts)], size)
        alone = first_frames if first_frames is not None else low_resolution
        single = isinstance(prompt, str) or (prompt is None and alone is not None and alone.ndim == 4)
        return video[0] if single else video

    def reconstruct(self, video: UInt8[np.ndarray, "*n t h w 3"]) -> UInt8[np.ndarray, "*n t h w 3"]:
        """A video through the autoencoder and back, at its own size; sizes the encoder does not take are padded and
        cropped back, with a line that says so."""
        check_video(video)
        padded, crop = fit(video, self._autoencoder.time_factor, self._autoencoder.space_factor)
        return crop(self.decode(self.encode(padded)))

    def reconstruct_stream(
        self, chunks: Iterable[UInt8[np.ndarray, "t h w 3"]], tiling: Tiling | None = None
    ) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """`reconstruct` of one video that arrives in chunks of any numbers of frames, in memory that does not grow with
        its length. Frames come out as soon as the autoencoder has all that they depend on. A `tiling` also bounds the
        memory that large frames need, and is approximate."""
        # One device of this process: a video that arrives piece by piece gives others nothing to do.
        part = jax.device_put((self._autoencoder_part.params, self._autoencoder_part.extra), self.mesh.local_devices[0])
        model = programs.autoencoder(self._autoencoder).bind(*part)
        padded, crop = fit_stream(chunks, self._autoencoder.time_factor, self._autoencoder.space_factor)
        latents = stream_encode(model, (to_float(jnp.asarray(chunk[None])) for chunk in padded), tiling)
        return crop(np.asarray(to_uint8(video))[0] for video in stream_decode(model, latents, tiling))

    def tiling(self, pixels: int) -> Tiling:
        """Tiles of at least `pixels` a side, a quarter of which overlaps."""
        positions = max(2, -(-check_count("the side of a tile", pixels) // self._autoencoder.space_factor))
        return Tiling(positions, positions // 4)

    def encode(self, video: UInt8[np.ndarray, "*n t h w 3"]) -> Float[np.ndarray, "*n f i j c"]:
        """Normalised latents of a video of 1 + 4k frames with sides that are multiples of 8 (factors of the
        autoencoder); others raise `ValueError`."""
        check_video(video)
        latents = self._in_parts(self._encode, video.reshape((-1, *video.shape[-4:])))
        return latents.reshape((*video.shape[:-4], *latents.shape[1:]))

    def decode(self, latents: Float[np.ndarray, "*n f i j c"]) -> UInt8[np.ndarray, "*n t h w 3"]:
        """The video of normalised latents."""
        video = self._in_parts(lambda rows: self._decode(self._rows(rows)), latents.reshape((-1, *latents.shape[-4:])))
        return video.reshape((*latents.shape[:-4], *video.shape[1:]))

    def describe(self) -> str:
        """One line: which parts, and how large."""
        parts = {"autoencoder": self._autoencoder_weights[0]} | (self._generator_weights[0] if self.video_size else {})
        text = ", ".join(f"{name.replace('_', ' ')} {_millions(tree)}" for name, tree in parts.items())
        return f"{text}; generates {self.video_size}" if self.video_size else text

    def _rows(self, arrays: Any) -> Any:
        """Arrays of a row per video, divided over the devices."""
        return put(arrays, batch_sharding(self.mesh))

    def _encode(self, videos: UInt8[np.ndarray, "n t h w 3"]) -> jax.Array:
        with jax.set_mesh(self.mesh):
            return programs.encode(self._autoencoder, self._autoencoder_weights, self._rows(videos))

    def _decode(self, latents: jax.Array) -> jax.Array:
        with jax.set_mesh(self.mesh):
            return programs.decode(self._autoencoder, self._autoencoder_weights, latents)

    def _in_parts(self, program: Callable[[np.ndarray], jax.Array], rows: np.ndarray) -> np.ndarray:
        """What a program makes of rows, of which there may be any number."""
        count = len(rows)
        filled = np.minimum(np.arange(_multiple(count, batch_shards(self.mesh))), count - 1)
        return read(program(rows[filled]))[:count]

    def _videos(
        self,
        prompts: Any,
        seed: int,
        rows: np.ndarray,
        sampler: SamplerConfig,
        negative: Any,
        given: Given,
        frames: int,
    ) -> np.ndarray:
        if sampler.guidance == 1 or prompts is None:
            strength, negative = None, None
        else:
            # Traced, so that another strength needs no compilation.
            strength, sampler = np.float32(sampler.guidance), dataclasses.replace(sampler, guidance=0.0)
        if negative is not None:
            negative = jax.tree.map(lambda array: np.repeat(array, len(rows), axis=0), negative)
        # The decoder is causal: later latents do not change the frames that are asked for.
        needed = 1 + math.ceil((frames - 1) / self._autoencoder.time_factor)
        with jax.set_mesh(self.mesh):
            keys = programs.row_keys(np.uint32(seed), self._rows(rows.astype(np.int32)))
            texts, negative = self._rows((prompts, negative))
            latents = self._sample(sampler, texts, keys, strength, negative, given)[:, :needed]
        return read(self._decode(latents))

    def _sample(self, sampler: SamplerConfig, prompts: Any, keys: jax.Array, *options: Any) -> jax.Array:
        """Latents; in one run, or by some steps at a time if anybody watches."""
        model, weights = (self._generator, sampler), self._generator_weights
        if (watched := watcher()) is None:
            return programs.sample_latents(*model, weights, prompts, keys, *options)
        *_, given = options
        draft = programs.begin_sampling(*model, weights, keys, given)
        for first in range(0, sampler.turns, watched.every):
            last = min(first + watched.every, sampler.turns)
            span = np.int32(first), np.int32(last)
            draft = programs.sample_some(*model, weights, prompts, keys, *options, draft, span)
            watched.see(Moment(last, sampler.turns, lambda x0=draft.x0: read(self._decode(x0))))  # type: ignore[misc]
        return draft.x

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

    def _read(self, texts: list[str] | None, what: str) -> Any:
        """Embeddings or labels; None for a model that reads no prompts."""
        return None if texts is None or self._read_prompts is None else self._read_prompts(texts, what)

    @property
    def reads_prompts(self) -> bool:
        """Whether it makes a video of a prompt or a class; a model that does not goes on from frames."""
        return self.video_size is not None and self._read_prompts is not None

    def check_size(self, num_frames: int | None, height: int | None, width: int | None) -> VideoSize:
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
        if any(a > b for a, b in zip(asked, full)):
            raise GenerationError(f"this model makes at most {full}, got a request for {asked}")
        return asked

    def sampler_with(
        self, steps: int | None = None, guidance: float | None = None, solver: str | None = None
    ) -> SamplerConfig:
        """How it samples with these in place of the bundle's. Raises `GenerationError` for what is out of range."""
        changes: dict[str, Any] = {} if solver is None else {"solver": solver}
        if steps is not None:
            changes["steps"] = check_count("steps", steps)
        if guidance is not None:
            if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
                raise GenerationError(f"guidance must be a finite number, got {guidance!r}")
            changes["guidance"] = float(guidance)
        try:
            sampler = dataclasses.replace(self.sampler, **changes)
            sampler.check_schedule(self._generator.diffusion.make_schedule(self._generator.transformer.latent_shape))
            return sampler
        except ConfigError as error:
            raise GenerationError(str(error)) from error


def _as_tree(weights: programs.Weights) -> Tree:
    return dict(zip(("params", "extra"), weights))


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _crop(video: np.ndarray, size: VideoSize) -> np.ndarray:
    top, left = (video.shape[2] - size.height) // 2, (video.shape[3] - size.width) // 2
    return video[:, : size.frames, top : top + size.height, left : left + size.width]


def _millions(tree: Tree) -> str:
    return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f}M"
