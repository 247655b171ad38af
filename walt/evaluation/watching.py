"""Evaluators that watch a model while it trains: distances of its samples, fidelity of its reconstructions.

All processes of a job draw samples together, on the mesh of the run and with the weights where they lie; then each takes its share of the
network's work on its own devices, so that none waits for another that works alone. Every result is kept whole, with its card, in the
folder `evaluations` of the work directory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from walt.data import media
from walt.data.bar import progress_bar
from walt.data.records import DatasetError
from walt.evaluation import card, fidelity, networks
from walt.evaluation.clips import EvaluationError, evenly_spaced
from walt.evaluation.config import ReconstructionEvaluation, SampleEvaluation
from walt.evaluation.distance import checked, for_pairs, real_statistics
from walt.evaluation.features import Extractor, Features, Share, clip_of, default_cache, of_all_processes
from walt.evaluation.footage import Footage
from walt.evaluation.measure import RealStatistics, VideoDistance, measure
from walt.evaluation.protocols import PROTOCOLS
from walt.evaluation.samples import Prompts, SampleFn
from walt.parallel.processes import exchanged
from walt.training.state import TrainState

FOLDER = "evaluations"
TRIED = 16
"""Real videos, for one that can be read, before a run begins."""
Reconstruct = Callable[[UInt8[np.ndarray, "n t h w 3"]], UInt8[np.ndarray, "n t h w 3"]]


@dataclass
class SampleDistance:
    """An `Evaluator`: the figures of a protocol for samples of the averaged weights.

    Attributes:
      real: clips, or statistics of them.
      prompts: one for each sample.
      sampler: of a state, what draws samples by their numbers; all processes call that together.
      size: frames, height and width of these.
      told: what the card is to say of how they are drawn.
      cache: where features of the real clips are kept from one start of the run to the next.
    """

    name: str
    config: SampleEvaluation
    real: Footage | RealStatistics
    prompts: Prompts
    sampler: Callable[[TrainState], SampleFn]
    size: tuple[int, int, int]
    told: Mapping[str, Any]
    workdir: epath.PathLike
    cache: Path = field(default_factory=default_cache)

    def __post_init__(self) -> None:
        self.every, self.takes_long, protocol = self.config.every, True, PROTOCOLS[self.config.protocol]
        # Before the run begins: missing weights, statistics that were made otherwise or clips of another shape must not end it hours later.
        weights = networks.NETWORKS[protocol.network].read(self.config.weights)
        self._extractor = Extractor(protocol, weights)
        if isinstance(self.real, RealStatistics):
            self.real = checked(self.real, self._extractor, seed=0)
        self._check_shapes()

    def _check_shapes(self) -> None:
        """Raises `EvaluationError` for samples that are no clips of the protocol, or other ones than the real clips are."""
        try:
            sample = self._extractor.prepared(np.zeros((*self.size, 3), np.uint8)).shape
        except EvaluationError as error:
            raise EvaluationError(f"evaluators.{self.name}: samples of this model are too short: {error}") from error
        real = self.real
        shape = tuple(real.card["clip_shape"]) if isinstance(real, RealStatistics) else self._first_shape(real)
        if sample != shape:
            raise EvaluationError(
                f"evaluators.{self.name}: real clips are {list(shape)} but samples of this model {list(sample)}: name real clips of "
                "that size and length (`real`), or a protocol that brings both to one"
            )

    def _first_shape(self, real: Footage) -> tuple[int, ...]:
        """Of the first real clip that can be measured; a few may be damaged."""
        found: Exception | None = None
        for row in range(min(len(real), TRIED)):
            try:
                return clip_of(real, row, self._extractor.protocol, random_start=False, seed=0).shape
            except (media.MediaError, DatasetError, EvaluationError) as error:
                found = found or error
        raise EvaluationError(f"evaluators.{self.name}: the first {TRIED} real clips cannot be used: {found}")

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        if not isinstance(self.real, RealStatistics):
            self.real = real_statistics(self.real, self._extractor, self.cache, 0, Share.of_job())
        generated = self._features(self.sampler(state))
        found = measure(self.real, generated, self._extractor.protocol, intervals=0, seed=0)
        sampled = {**self.told, "step": step, "weights": "ema", "prompts": self.prompts.card()}
        return _kept(replace(found, card={**found.card, "sampled": sampled}), {}, self.name, step, self.workdir)

    def _features(self, sample: SampleFn) -> Features:
        batch, parts = self.config.batch_size, []
        for start in progress_bar(range(0, self.config.samples, batch), desc=self.name, unit="batch"):
            rows = range(start, min(start + batch, self.config.samples))
            parts.append(_my_features(self._extractor, sample(rows), rows))
        return of_all_processes(parts)


@dataclass
class ReconstructionFigures:
    """An `Evaluator`: PSNR, SSIM, sharpness, motion and flicker of reconstructions, and their distance to the very clips that they are of.

    Attributes:
      clips: the footage, all of one shape.
      reconstructor: of a state, what sends clips through the autoencoder and back; all processes call that together.
    """

    name: str
    config: ReconstructionEvaluation
    clips: Footage
    reconstructor: Callable[[TrainState], Reconstruct]
    workdir: epath.PathLike

    def __post_init__(self) -> None:
        self.every, self.takes_long = self.config.every, True
        chosen = evenly_spaced(len(self.clips), self.config.clips).tolist()
        self.clips = self.clips.rows(chosen)
        self._extractor = self._network()
        self._of_originals: Features | None = None

    def _network(self) -> Extractor | None:
        """Of the protocol, if there are weights and frames for it."""
        if self.config.protocol is None:
            return None
        protocol = for_pairs(PROTOCOLS[self.config.protocol])
        network, frames = networks.NETWORKS[protocol.network], len(self._originals([0])[0])
        needed = protocol.span or network.fewest_frames
        if frames < needed:
            logging.warning("%s: %s needs clips of %d frames, these have %d", self.name, protocol.name, needed, frames)
            return None
        try:
            return Extractor(protocol, network.read(self.config.weights))
        except EvaluationError as error:
            if self.config.weights is not None:
                raise
            logging.warning("%s: no distance is measured: %s", self.name, error)
            return None

    def __call__(self, state: TrainState, step: int) -> dict[str, float | np.ndarray]:
        reconstruct, batch, share = self.reconstructor(state), self.config.batch_size, Share.of_job()
        sums, ours, theirs = np.zeros(fidelity.SUMS), [], []
        for start in progress_bar(range(0, len(self.clips), batch), desc=self.name, unit="batch"):
            rows = range(start, min(start + batch, len(self.clips)))
            originals = self._originals(rows)
            videos = reconstruct(originals)
            mine = slice(share.index, None, share.count)
            if len(rows[mine]):
                sums += fidelity.sums(originals[mine], videos[mine])
            if self._extractor is not None:
                ours.append(_my_features(self._extractor, videos, rows))
                if self._of_originals is None:
                    theirs.append(_my_features(self._extractor, originals, rows))
        totals = np.sum([np.frombuffer(part) for part in exchanged(sums.tobytes())], axis=0)
        figures = {name: value for name, value in vars(fidelity.of_sums(totals)).items() if value is not None}
        if self._extractor is None:
            return figures
        self._of_originals = self._of_originals or of_all_processes(theirs)
        found = paired(self._of_originals, of_all_processes(ours), self._extractor, self.clips)
        return _kept(found, figures, self.name, step, self.workdir)

    def _originals(self, rows: Sequence[int]) -> UInt8[np.ndarray, "n t h w 3"]:
        clips = [self.clips.videos[row].clip(None, 1, lambda places: 0, fewest=1) for row in rows]
        if len({clip.shape for clip in clips}) > 1:
            raise EvaluationError(f"{self.name}: clips of {self.clips.description} differ in shape")
        return np.stack(clips)


def paired(originals: Features, reconstructed: Features, extractor: Extractor, clips: Footage) -> VideoDistance:
    """The distance of reconstructions to the very clips that they are of."""
    of = {"sha256": clips.fingerprint(), "from": Path(clips.description).name, "clips": len(originals.values)}
    head = card.of_extraction(extractor, originals.clip_shape, 0)
    statistics = RealStatistics(
        originals.values, {**head, "paired": True, "real": {**of, "bad": list(originals.bad)}}, originals.rows
    )
    return measure(statistics, reconstructed, extractor.protocol, intervals=0, seed=0)


def _my_features(extractor: Extractor, videos: UInt8[np.ndarray, "n t h w 3"], rows: range) -> Features:
    """Of this process's share of videos that all processes hold."""
    share = Share.of_job()
    mine = videos[share.index :: share.count]
    values = extractor.of_videos(mine) if len(mine) else np.empty((0, 0), np.float32)
    shape = extractor.prepared(mine[0]).shape if len(mine) else ()
    return Features(values, np.array(rows[share.index :: share.count], np.int64), (), "", shape)


def _kept(
    found: VideoDistance, others: Mapping[str, float], name: str, step: int, workdir: epath.PathLike
) -> dict[str, float | np.ndarray]:
    """The figures that are one number, for the log, after all of the result was written to a file of its own."""
    if jax.process_index() == 0:
        folder = epath.Path(workdir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        result = json.dumps({**others, **found.to_dict()}, indent=2, allow_nan=False) + "\n"
        (folder / f"{name}-{step}.json").write_text(result)
    numbers = {name: float(value) for name, value in found.figures.items() if isinstance(value, (int, float))}
    return {**others, **numbers}
