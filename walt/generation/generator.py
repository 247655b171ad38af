"""The parts of a bundle that generate, on a mesh: from prompts and a canvas to latents."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from walt.config import ConfigError
from walt.diffusion.canvas import Canvas
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.generation import memory, programs
from walt.generation.bundle import Bundle, BundleError, Tree
from walt.generation.canvas import Sheet, stacked
from walt.generation.codec import Codec, multiple
from walt.generation.fit import VideoSize
from walt.generation.given import Given
from walt.generation.parts import component_of, config_of, model_checksum, place_weights
from walt.generation.prompts import ClassReader, TextReader
from walt.generation.request import GenerationError, check_count, check_negative, check_scalars, check_seed
from walt.generation.sampling import DEFAULT, Order, Sampling
from walt.generation.watching import Moment, watcher
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import batch_shards, make_mesh, read
from walt.text.config import TextEncoderConfig
from walt.text.tokenizer import read_tokenizer
from walt.transformer.config import TransformerConfig
from walt.transformer.resize import resize, resized_config
from walt.transformer.sharding import PARAMETER_AXES, check_mesh

DEFAULT_FPS = 8.0  # W.A.L.T's


class Generator(Codec):
    """The second stage, if the bundle has one; see `Pipeline` for what there is."""

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
        self.video_size = VideoSize(*self._autoencoder.clip_size(*transformer.latent_shape))
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
        if prompt is None and self._read_prompts is not None:
            asked, sampling = [self.class_names[0] if self.class_names else "video"] * count, sampling.unprompted()
        told = None if asked[0] is None else asked
        order = self._order(
            told,
            asked,
            (frames, height, width, channels),
            sampling,
            row + np.arange(count),
            canvas=canvas,
            circular=circular,
        )
        latents = np.concatenate([read(latents) for latents in self._batches(order, batch_size)])[:count]
        return latents if several else latents[0]

    def _order(
        self,
        prompt: Any,
        prompts: Sequence[Any],
        shape: tuple[int, int, int, int],
        sampling: Sampling,
        numbers: np.ndarray,
        **given: Any,
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
        away = self._read(None if negative is None else [check_negative(negative)], "negative_prompt")
        told = self._read(None if prompt is None else list(prompts), "prompt")
        return Order(shape, len(prompts), told, away, sampler, sampling.seed, scalars, numbers, **given)

    def sampler_with(
        self,
        steps: int | None = None,
        guidance: float | None = None,
        solver: str | None = None,
        reuse: float | None = None,
    ) -> SamplerConfig:
        """How it samples with these in place of the bundle's. Raises `GenerationError` for what is out of range."""
        schedule = self._generator.diffusion.make_schedule(self._generator.transformer.latent_shape)
        return Sampling(steps, guidance, solver, reuse=reuse).sampler(self.sampler, schedule)

    def _batches(self, order: Order, batch_size: int) -> Iterator[jax.Array]:
        """Latents of so many rows at a time; the last are filled up with the last row, so that there is one shape to compile."""
        rows = multiple(min(batch_size, order.count), batch_shards(self.mesh))
        sampler, strength = order.sampler, None
        if sampler.guidance != 1 and order.prompts is not None:
            # Traced, so that another strength needs no compilation.
            strength, sampler = np.float32(sampler.guidance), dataclasses.replace(sampler, guidance=0.0)
        branches = 1 + (strength is not None) + (sampler.known_guidance != 1)
        device = self.mesh.local_devices[0]
        share = rows if device.platform == "cpu" else rows // batch_shards(self.mesh)  # CPU devices have one memory
        free = memory.available(device)
        transformer, shape = self._generator.transformer, order.shape
        if order.circular:  # seen through a window at every frame
            shape, branches = (transformer.latent_shape[0], *shape[1:]), branches * shape[0]
        memory.check_memory(transformer, self._autoencoder, shape, share, branches, free, sampler.reuse > 0)
        config, weights = self._sized(order.shape[1:3])
        config = config._replace(frames=order.shape[0], circular=order.circular)
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
                keys = programs.row_keys(np.uint32(order.seed), self._rows(order.numbers[chosen].astype(np.int32)))
                yield self._sample((config, sampler, weights), pick(order.prompts), keys, strength, negative, given)

    def _sample(
        self,
        model: tuple[programs.GeneratorConfig, SamplerConfig, programs.Weights],
        prompts: Any,
        keys: jax.Array,
        *options: Any,
    ) -> jax.Array:
        """Latents; in one run, or by some steps at a time if anybody watches."""
        if (watched := watcher()) is None:
            return programs.sample_latents(*model, prompts, keys, *options)
        sampler = model[1]
        draft = programs.begin_sampling(*model, prompts, keys, *options)
        for first in range(0, sampler.turns, watched.every):
            last = min(first + watched.every, sampler.turns)
            span = np.int32(first), np.int32(last)
            draft = programs.sample_some(*model, prompts, keys, *options, draft, span)
            watched.see(Moment(last, sampler.turns, lambda x0=draft.estimate.x0: read(self._decode(x0))))  # type: ignore[misc]
        return draft.x

    def _read(self, texts: list[str] | None, what: str) -> Any:
        """Embeddings or labels; None for a model that reads no prompts."""
        return None if texts is None or self._read_prompts is None else self._read_prompts(texts, what)

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


def _as_tree(weights: programs.Weights) -> Tree:
    return dict(zip(("params", "extra"), weights))
