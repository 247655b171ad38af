"""From an image autoencoder to a video autoencoder that gives the same pictures (MAGVIT-v2, appendix on inflation).

Each 2D kernel becomes the last temporal slice of a 3D kernel, the slice that sees the present frame, and the other slices
are zero. Depth-to-space in time repeats the weight along its output channels, so every frame it makes is the same. The
inflated model gives on any frame what the image model gives, and of a video every `time_factor`-th frame, held until the
next: on a static video that is the image model exactly.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.model import Autoencoder
from walt.config import ConfigError
from walt.parallel.rules import path_name
from walt.training.module import Functional
from walt.training.task import Tree

CHANNELS, OUTPUTS = -2, -1


def inflate(params: Tree, image: AutoencoderConfig, video: AutoencoderConfig) -> Tree:
    """Parameters of the video autoencoder `video` from those of the image autoencoder `image`.

    Raises `ConfigError` unless the two differ in nothing but time: `temporal_kernels`, the first entries of `strides`, and
    `dtype`.
    """
    _check(image, video)
    abstract = Functional(lambda rngs: Autoencoder(video, rngs)).abstract_params
    flat = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def inflated(path: tuple, target: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path_name(path)
        found = flat.get(name)
        if found is None:
            raise ConfigError(f"the image autoencoder has no parameter {name}")
        if name.rsplit("/", 1)[-1] == "kernel" and found.ndim == 5:
            return _inflated_kernel(found, target.shape)
        return np.tile(found, target.shape[0] // found.shape[0]) if found.ndim == 1 else found

    return jax.tree_util.tree_map_with_path(inflated, abstract)


def _inflated_kernel(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A kernel [1, h, w, c, d] as the last temporal slice of one of `shape`; more outputs are repeats of the same ones."""
    result = np.zeros(shape, kernel.dtype)
    result[-1] = np.tile(kernel[0], shape[OUTPUTS] // kernel.shape[OUTPUTS])
    return result


def _check(image: AutoencoderConfig, video: AutoencoderConfig) -> None:
    if image.time_factor != 1 or set(image.temporal_kernels) != {1}:
        raise ConfigError(
            "only an image autoencoder, such as autoencoder/images, can be inflated: one whose temporal_kernels are all 1 and whose strides "
            "keep time"
        )
    of_image, of_video = _timeless(image), _timeless(video)
    different = [name for name in of_image if of_image[name] != of_video[name]]
    if different:
        raise ConfigError(
            f"the image and the video autoencoder must differ in time alone, but differ in {', '.join(different)}: "
            "are both of the same kind, such as autoencoder/images and autoencoder/k600, or their :mini variants?"
        )


def _timeless(config: AutoencoderConfig) -> dict[str, Any]:
    """What has nothing to do with time: every field but `temporal_kernels` and `dtype`, and of `strides` those in space."""
    fields = dataclasses.asdict(config) | {"strides": tuple(space for _, space in config.strides)}
    return {name: value for name, value in fields.items() if name not in ("temporal_kernels", "dtype")}
