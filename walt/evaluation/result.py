"""One result for a whole evaluation: the figures, the protocol they were taken under, and the bars they are held to."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from walt.evaluation.clips import Clips, EvaluationError, UndefinedError, check_same_shape, evenly_spaced
from walt.evaluation.diversity import DiversityResult, diversity_ratio
from walt.evaluation.motion import MotionResult, motion_ratio
from walt.evaluation.nearest import DISTANCE, NearestResult, nearest_clips
from walt.evaluation.prompts import PromptResult, fit_classifier, prompt_accuracy
from walt.evaluation.reconstruction import ReconstructionResult, compare_reconstructions, mean_frames

PROTOCOLS = ("atari-mini",)
"""Names that an evaluation of labelled clips can be asked for. Those of the Fréchet video distance are in `walt.evaluation.protocols`."""

DEFINITIONS: Mapping[str, str] = {
    "heldout_psnr": "dB on held-out clips, all pixels; MSE pooled per label, mean over labels",
    "psnr_moving": "the same on pixels whose temporal standard deviation in the real clip exceeds 0.05 (0-1 scale)",
    "psnr_mean_frame": "moving pixels predicted by the mean frame of the label's training clips",
    "psnr_first_frame_repeated": "moving pixels predicted by the clip's first frame (frame 0 included)",
    "prompt_accuracy": "generated clips that a classifier fitted on real frames alone names as their prompt does",
    "prompt_accuracy_shuffled": "the same against prompts permuted so that none matches; ignoring prompts gives chance, following them 0",
    "motion_ratio": "mean absolute frame difference, generated / real, averaged over labels before dividing",
    "reconstruction_motion_ratio": "the same for reconstructions over their originals: what the first stage alone adds (flicker) or takes",
    "motion_labels_within": "labels whose own ratio lies in 0.5-2",
    "diversity_ratio": "mean pairwise distance within a prompt over that of real clips within a label, averaged over labels before dividing",
    "nearest_distance": f"mean distance to the nearest training clip: {DISTANCE}",
}

_HELDOUT_QUERIES = 64
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Whatever parts were asked for; `to_dict` is the JSON form: headline figures flat, then `per_label`, then `protocol`."""

    protocol: Mapping[str, Any]
    reconstruction: ReconstructionResult | None = None
    reconstruction_motion: MotionResult | None = None
    prompts: PromptResult | None = None
    motion: MotionResult | None = None
    diversity: DiversityResult | None = None
    nearest: NearestResult | None = None
    nearest_heldout_distance: float | None = None

    def headline(self) -> dict[str, float | int | None]:
        """The flat figures of the parts that exist. `None` means not defined for these clips (see the definitions)."""
        figures: dict[str, float | int | None] = {}
        if self.reconstruction is not None:
            figures.update(_fields(self.reconstruction, without=("per_label",)))
        if self.reconstruction_motion is not None:
            figures["reconstruction_motion_ratio"] = self.reconstruction_motion.motion_ratio
        if self.prompts is not None:
            figures.update(_fields(self.prompts, without=("per_label", "confusion", "named")))
        if self.motion is not None:
            figures["motion_ratio"] = self.motion.motion_ratio
            figures["motion_labels_within"], figures["motion_labels"] = self.motion.within, self.motion.labels
        if self.diversity is not None:
            figures["diversity_ratio"] = self.diversity.diversity_ratio
        if self.nearest is not None:
            figures["nearest_distance"] = self.nearest.mean_distance
            figures["nearest_distance_heldout"] = self.nearest_heldout_distance
        return figures

    def per_label(self) -> dict[str, dict[str, float | int | None]]:
        """Label -> figure -> value, for the labels and parts that exist."""
        table: dict[str, dict[str, float | int | None]] = {}
        parts: tuple[tuple[str, Mapping[str, Any]], ...] = (
            ("", {} if self.reconstruction is None else self.reconstruction.per_label),
            (
                "reconstruction_motion_",
                {} if self.reconstruction_motion is None else self.reconstruction_motion.per_label,
            ),
            ("motion_", {} if self.motion is None else self.motion.per_label),
            ("diversity_", {} if self.diversity is None else self.diversity.per_label),
        )
        for prefix, part in parts:
            for label, entry in part.items():
                row = table.setdefault(label, {})
                row.update({prefix + name: value for name, value in _fields(entry).items()})
        for label, value in {} if self.prompts is None else self.prompts.per_label.items():
            table.setdefault(label, {})["prompt_accuracy"] = value
        return dict(sorted(table.items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and finite numbers."""
        form: dict[str, Any] = {**self.headline(), "per_label": self.per_label()}
        if self.prompts is not None:
            form["confusion"] = self.prompts.confusion
        if self.nearest is not None:
            ids = self.nearest.clips.ids or ("",) * len(self.nearest.clips)
            rows = zip(self.nearest.distances, self.nearest.clips.labels, ids, strict=True)
            form["nearest"] = [{"distance": float(d), "label": label, "id": name} for d, label, name in rows]
        form["protocol"] = dict(self.protocol)
        return form

    def to_json(self) -> str:
        """`to_dict` as indented JSON; never NaN or Infinity."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"


def evaluate_clips(
    heldout: Clips,
    *,
    reconstructions: np.ndarray | None = None,
    generated: Clips | None = None,
    training: Iterable[Clips] | None = None,
    protocol: str = "atari-mini",
    seed: int = 0,
) -> EvaluationResult:
    """Everything that the given clips allow under a protocol.

    heldout: real clips that no training step saw; also what the classifier is fitted on and what motion and diversity are relative to.
    reconstructions: uint8, what the first stage makes of `heldout.videos`.
    generated: samples, labelled by what their prompt names.
    training: the training clips in chunks, walked up to twice; for the mean-frame baseline and the nearest clips.
    A figure that these clips do not define is left out with a warning. Raises `EvaluationError` for an unknown protocol and
    whatever else the single metrics raise.
    """
    check_protocol(protocol)
    if generated is not None:
        check_same_shape("generated", generated, "held-out", heldout)
    moves = heldout.clip_shape[0] > 1  # stills have no motion to measure
    reconstruction, recoded = None, None
    if reconstructions is not None:
        means = None if training is None else mean_frames(training)
        reconstruction = compare_reconstructions(heldout, reconstructions, means)
        recoded = motion_ratio(Clips(reconstructions, heldout.labels), heldout) if moves else None
    if generated is None:
        return EvaluationResult(_card(protocol, seed, heldout, None), reconstruction, recoded)
    nameable = len(heldout.label_names) > 1
    if not nameable:
        logging.warning("left out: prompt_accuracy needs real clips of two labels or more")
    nearest, usual = (None, None) if training is None else _nearest(generated, heldout, training)
    return EvaluationResult(
        protocol=_card(protocol, seed, heldout, generated),
        reconstruction=reconstruction,
        reconstruction_motion=recoded,
        prompts=_defined(lambda: prompt_accuracy(fit_classifier(heldout, seed=seed), generated)) if nameable else None,
        motion=motion_ratio(generated, heldout) if moves else None,
        diversity=_defined(lambda: diversity_ratio(generated, heldout)),
        nearest=nearest,
        nearest_heldout_distance=usual,
    )


def _defined(measure: Callable[[], T]) -> T | None:
    """The figure, or `None` with a warning that says what the clips lack for it."""
    try:
        return measure()
    except UndefinedError as error:
        logging.warning("left out: %s", error)
        return None


def check_protocol(name: str) -> None:
    """Raises `EvaluationError` for a protocol that there is not, or that is one of the Fréchet video distance."""
    if name not in PROTOCOLS:
        from walt.evaluation import protocols  # jax

        others = ", ".join(protocols.PROTOCOLS)
        raise EvaluationError(
            f"unknown protocol {name!r}: there is {', '.join(PROTOCOLS)} and, for distances, {others}"
        )


def _nearest(generated: Clips, heldout: Clips, training: Iterable[Clips]) -> tuple[NearestResult, float]:
    """Both searches in one walk over the training clips."""
    usual = heldout.take(evenly_spaced(len(heldout), _HELDOUT_QUERIES))
    both = Clips(np.concatenate([generated.videos, usual.videos]), generated.labels + usual.labels)
    found = nearest_clips(both, training)
    count = len(generated)
    ours = NearestResult(found.distances[:count], found.clips.take(np.arange(count)))
    return ours, float(found.distances[count:].mean())


def _card(protocol: str, seed: int, heldout: Clips, generated: Clips | None) -> dict[str, Any]:
    return {
        "name": protocol,
        "version": 1,
        "clip_shape": list(heldout.clip_shape),
        "heldout_clips": len(heldout),
        "generated_clips": 0 if generated is None else len(generated),
        "labels": list(heldout.label_names),
        "seed": seed,
        "definitions": dict(DEFINITIONS),
    }


def _fields(entry: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.name not in without}
