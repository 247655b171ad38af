"""Videos of any length, chunk by chunk, with the result of the whole at once.

Nothing in the autoencoder looks ahead, so a chunk needs only the last frames of each convolution's input from the chunk
before. Memory depends on the size of the chunks and not on their number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from walt.autoencoder.layers import Stream
from walt.autoencoder.model import Autoencoder
from walt.autoencoder.tiling import Step, Tiling, tiled

Carry = tuple[Array, ...] | None


def stream_encode(
    model: Autoencoder, chunks: Iterable[Float[Array, "b t h w 3"]], tiling: Tiling | None = None
) -> Iterator[Float[Array, "b f i j c"]]:
    """Normalised latents of a video in [-1, 1] that arrives in chunks of any numbers of frames.

    The latents of all chunks, put together along time, are `model.encode` of the whole video. A latent frame comes out
    as soon as all its frames have come in. Compiled once per number of frames that is processed at a time; chunks of equal
    size give at most four of them. With a `tiling`, frames are processed in tiles (approximate).

    Raises:
      ValueError: a chunk is no video that `model.encode` takes, differs from the first in anything but its length, or
        the whole is empty or not 1 + 4k frames long (factor of the config).
    """
    unit = model.config.time_factor
    graph, state = nnx.split(model)
    step: Step = functools.partial(_encode, graph, state)
    if tiling is not None:
        step = tiled(step, tiling, model.config.space_factor, 1)
    yield from _stream(step, _checked(chunks, model), unit)


def stream_decode(
    model: Autoencoder, chunks: Iterable[Float[Array, "b f i j c"]], tiling: Tiling | None = None
) -> Iterator[Float[Array, "b t h w 3"]]:
    """Clips in about [-1, 1] from normalised latents that arrive in chunks of any numbers of latent frames.

    The clips, put together along time, are `model.decode` of all latents. Raises `ValueError` as `stream_encode` does.
    """
    channels = model.config.latent_channels

    def checked() -> Iterator[Array]:
        for chunk in chunks:
            if chunk.ndim != 5 or chunk.shape[-1] != channels:
                raise ValueError(f"decode takes [batch, frames, height, width, {channels}], got {chunk.shape}")
            yield chunk

    graph, state = nnx.split(model)
    step: Step = functools.partial(_decode, graph, state)
    if tiling is not None:
        step = tiled(step, tiling, 1, model.config.space_factor)
    yield from _stream(step, checked(), 1)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _encode(graph: Any, state: Any, video: Array, before: Carry) -> tuple[Array, Carry]:
    model, stream = nnx.merge(graph, state), Stream(before)
    latents = (model.encode_raw(video, stream) - model.latent_mean[...]) / model.latent_std[...]
    return latents, tuple(stream.after)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _decode(graph: Any, state: Any, latents: Array, before: Carry) -> tuple[Array, Carry]:
    model, stream = nnx.merge(graph, state), Stream(before)
    video = model.decode_raw(latents * model.latent_std[...] + model.latent_mean[...], stream)
    return video, tuple(stream.after)


def _stream(step: Step, chunks: Iterable[Array], unit: int) -> Iterator[Array]:
    carry: Any = None
    for piece in _regroup(chunks, unit):
        result, carry = step(piece, carry)
        yield result


def _regroup(chunks: Iterable[Array], unit: int) -> Iterator[Array]:
    """The same frames, cut where the network can be: after frame 0, then at multiples of `unit`."""
    pending, first = None, True
    for chunk in chunks:
        if pending is not None and (chunk.shape[0], *chunk.shape[2:]) != (pending.shape[0], *pending.shape[2:]):
            raise ValueError(
                f"chunks of one video differ in their length alone, got {chunk.shape} after {pending.shape}"
            )
        pending = chunk if pending is None else jnp.concatenate([pending, chunk], axis=1)
        if first and pending.shape[1]:
            yield pending[:, :1]
            pending, first = pending[:, 1:], False
        whole = pending.shape[1] // unit * unit
        if whole:
            yield pending[:, :whole]
            pending = pending[:, whole:]
    if pending is None or first:
        raise ValueError("there is no frame to process")
    if pending.shape[1]:
        raise ValueError(
            f"the video ends {pending.shape[1]} frames after a multiple of {unit}; it must have 1 + {unit}k frames"
        )


def _checked(chunks: Iterable[Array], model: Autoencoder) -> Iterator[Array]:
    for chunk in chunks:
        model.check_video(chunk)
        model.config.latent_shape(1, *chunk.shape[2:4])
        yield chunk
