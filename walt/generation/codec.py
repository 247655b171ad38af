"""The autoencoder of a bundle on a mesh: pixels to latents and back, whole or in a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from walt.autoencoder import Tiling, stream_decode, stream_encode
from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.convolution import SUBLANES
from walt.autoencoder.model import to_float, to_uint8
from walt.generation import programs
from walt.generation.bundle import Bundle
from walt.generation.fit import fit, fit_stream
from walt.generation.parts import component_of, config_of, place_weights
from walt.generation.request import check_count, check_video
from walt.parallel.mesh import batch_sharding, batch_shards, put, read


class Codec:
    """The first stage."""

    def __init__(self, bundle: Bundle, mesh: Mesh):
        """Raises `BundleError` if the bundle has no autoencoder that can be used."""
        self.mesh = mesh
        part = component_of(bundle, "autoencoder")
        self._autoencoder = config_of(AutoencoderConfig, part.config, "autoencoder")
        abstract = programs.autoencoder(self._autoencoder)
        self._autoencoder_weights = place_weights(abstract, part.params, part.extra, "autoencoder", self.mesh)
        self._autoencoder_part = part

    @property
    def time_factor(self) -> int:
        """Pictures that a latent frame stands for, but for the first, which stands for one."""
        return self._autoencoder.time_factor

    @property
    def space_factor(self) -> int:
        """Pixels that a side of a latent position covers."""
        return self._autoencoder.space_factor

    @property
    def rows_at_a_time(self) -> int:
        """Videos that are best encoded at a time when there are many."""
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        return 16 if on_cpu else SUBLANES * batch_shards(self.mesh)

    def latent_frames(self, num_frames: int) -> int:
        """Latent frames of as many pictures, rounded up."""
        return 1 + -(-(num_frames - 1) // self.time_factor)

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
        model = self._local_autoencoder()
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

    def decoder(self) -> Callable[[Float[np.ndarray, "f i j c"]], UInt8[np.ndarray, "t h w 3"]]:
        """A function that takes the latents of one video in any pieces and gives the frames of each as `decode` gives them of the whole, in memory
        that does not grow with the length."""
        waiting: deque[jax.Array] = deque()

        def pieces() -> Iterator[jax.Array]:
            while True:
                yield waiting.popleft()

        decoded, time = stream_decode(self._local_autoencoder(), pieces()), self._autoencoder.time_factor
        begun = False

        def decode(latents: Float[np.ndarray, "f i j c"]) -> UInt8[np.ndarray, "t h w 3"]:
            nonlocal begun
            wanted = len(latents) * time - (0 if begun else time - 1)
            waiting.append(jnp.asarray(latents)[None])
            frames: list[np.ndarray] = []
            while sum(map(len, frames)) < wanted:
                frames.append(np.asarray(to_uint8(next(decoded)))[0])
            begun = True
            return np.concatenate(frames)

        return decode

    def _local_autoencoder(self) -> Any:
        # One device of this process: a video that arrives piece by piece gives others nothing to do.
        part = jax.device_put((self._autoencoder_part.params, self._autoencoder_part.extra), self.mesh.local_devices[0])
        return programs.autoencoder(self._autoencoder).bind(*part)

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
        filled = np.minimum(np.arange(multiple(count, batch_shards(self.mesh))), count - 1)
        return read(program(rows[filled]))[:count]


def multiple(number: int, of: int) -> int:
    return -(-number // of) * of
