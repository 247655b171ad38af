"""Does a generated clip show what its prompt names?

A classifier fitted on real frames names the label of each generated clip; `prompt_accuracy` is the share it names as the prompt does. It has
never seen a generated frame, and its own accuracy on real clips kept apart from the fit stands beside the figure.

Control: `prompt_accuracy_shuffled` scores the same clips against prompts permuted so that none keeps its label. A model that follows its
prompts reaches about 0 there, one that ignores them about chance = 1 / labels on both figures; a high value means the figure is broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from walt.evaluation.clips import (
    Clips,
    EvaluationError,
    UndefinedError,
    check_labels_known,
    check_videos,
    evenly_spaced,
)
from walt.evaluation.threads import one_blas_thread

FEATURE_SIDE = 16
"""Frames are averaged down to this many cells per side: enough to tell scenes apart, too coarse to key on sharpness or noise."""

UNSEEN_FRACTION = 0.25
FRAMES_PER_CLIP = 4
MAX_CLIPS_PER_LABEL = 256


def frame_features(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d"]:
    """Frames averaged over a grid of at most 16x16 cells, centred, on the [0, 1] scale; float32."""
    rows, columns = (_cells(side) for side in frames.shape[1:3])
    sums = np.add.reduceat(np.add.reduceat(frames.astype(np.float32), rows, axis=1), columns, axis=2)
    sizes = np.diff([*rows, frames.shape[1]])[:, None] * np.diff([*columns, frames.shape[2]])[None, :]
    return (sums / (255.0 * sizes[None, :, :, None]) - 0.5).reshape(len(frames), -1).astype(np.float32)


def _cells(side: int) -> np.ndarray:
    count = min(side, FEATURE_SIDE)
    return np.arange(count) * side // count


@dataclass(frozen=True, eq=False)
class LabelClassifier:
    """A fitted classifier and how good it is on real clips that it was not fitted on.

    `real_accuracy` counts clips, each named by the mean over its frames as generated clips are; `real_frame_accuracy` counts single frames.
    """

    model: Any
    labels: tuple[str, ...]
    frame_size: tuple[int, int]
    fitted_clips: int
    unseen_clips: int
    real_accuracy: float
    real_frame_accuracy: float

    def probabilities(self, videos: UInt8[np.ndarray, "n t h w 3"]) -> Float[np.ndarray, "n k"]:
        """Mean over all frames of a clip of the probability of each label. Raises `EvaluationError` for another frame size than the real clips'."""
        return _over_frames(_frame_probabilities(self.model, self.frame_size, videos))

    def name(self, videos: UInt8[np.ndarray, "n t h w 3"]) -> tuple[str, ...]:
        """The most probable label of each clip."""
        return tuple(self.labels[column] for column in self.probabilities(videos).argmax(axis=1))


@one_blas_thread
def fit_classifier(real: Clips, *, seed: int = 0) -> LabelClassifier:
    """Logistic regression on coarse frames of real clips, three quarters of each label's clips for the fit and the rest to measure it.

    The split is by clip, since frames of one clip are near copies of each other, and depends on `seed` alone. Up to 256 clips per label and
    4 evenly spaced frames per clip are used for the fit.
    Raises `EvaluationError` for fewer than two labels and for a label with fewer than two clips.
    """
    labels = real.label_names
    if len(labels) < 2:
        raise EvaluationError(
            f"naming labels needs real clips of at least 2 labels, got {len(labels)}: {', '.join(labels)}"
        )
    fitted, unseen = _split(real, seed)
    frames = real.videos[fitted][:, evenly_spaced(real.clip_shape[0], FRAMES_PER_CLIP)]
    targets = np.repeat([labels.index(real.labels[row]) for row in fitted], frames.shape[1])
    model = _logistic_regression()(C=1.0, max_iter=500)
    model.fit(frame_features(frames.reshape(-1, *real.clip_shape[1:])), targets)
    size = (real.clip_shape[1], real.clip_shape[2])
    probabilities = _frame_probabilities(model, size, real.videos[unseen])
    truth = np.array([labels.index(real.labels[row]) for row in unseen])
    return LabelClassifier(
        model=model,
        labels=labels,
        frame_size=size,
        fitted_clips=len(fitted),
        unseen_clips=len(unseen),
        real_accuracy=float((_over_frames(probabilities).argmax(axis=1) == truth).mean()),
        real_frame_accuracy=float((probabilities.argmax(axis=2) == truth[:, None]).mean()),
    )


def _logistic_regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise EvaluationError("prompt accuracy needs scikit-learn: pip install 'walt[report]'") from error
    return LogisticRegression


def _split(real: Clips, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    fitted, unseen = [], []
    for label in real.label_names:
        rows = real.rows_of(label)
        if len(rows) < 2:
            raise UndefinedError(
                f"the label {label!r} has {len(rows)} real clip; at least 2 are needed, one to fit on and one to measure with"
            )
        rows = random.permutation(rows)[:MAX_CLIPS_PER_LABEL]
        apart = max(1, round(len(rows) * UNSEEN_FRACTION))
        unseen.append(rows[:apart])
        fitted.append(rows[apart:])
    return np.concatenate(fitted), np.concatenate(unseen)


def _frame_probabilities(model: Any, frame_size: tuple[int, int], videos: np.ndarray, chunk: int = 64) -> np.ndarray:
    check_videos(videos)
    if videos.shape[2:4] != frame_size:
        raise EvaluationError(
            f"the classifier was fitted on frames of {list(frame_size)}, got frames of {list(videos.shape[2:4])}"
        )
    pieces = []
    for start in range(0, len(videos), chunk):
        some = videos[start : start + chunk]
        features = frame_features(some.reshape(-1, *videos.shape[2:]))
        pieces.append(model.predict_proba(features).reshape(len(some), videos.shape[1], -1))
    return np.concatenate(pieces)


def _over_frames(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.mean(axis=1)


def shuffled_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels permuted so that no position keeps its own: sorted, and rotated by the size of the largest group. Deterministic.

    Raises `EvaluationError` when one label has more than half the positions, since no such permutation exists then.
    """
    order = np.argsort(np.asarray(labels), kind="stable")
    names, counts = np.unique(np.asarray(labels), return_counts=True)
    if 2 * counts.max() > len(labels):
        raise EvaluationError(
            f"prompts cannot be shuffled so that none matches: {counts.max()} of {len(labels)} clips have the label "
            f"{str(names[counts.argmax()])!r}"
        )
    shuffled = [""] * len(labels)
    for position, source in zip(order, np.roll(order, -counts.max()), strict=True):
        shuffled[position] = labels[source]
    return tuple(shuffled)


@dataclass(frozen=True)
class PromptResult:
    """`confusion[asked][named]` counts generated clips; `prompt_accuracy_shuffled` is `None` where no shuffle without a match exists."""

    prompt_accuracy: float
    prompt_accuracy_shuffled: float | None
    prompt_accuracy_chance: float
    classifier_real_accuracy: float
    classifier_real_frame_accuracy: float
    classifier_clips_fitted: int
    classifier_clips_unseen: int
    per_label: Mapping[str, float]
    confusion: Mapping[str, Mapping[str, int]]
    named: tuple[str, ...]


@one_blas_thread
def prompt_accuracy(classifier: LabelClassifier, generated: Clips) -> PromptResult:
    """How many generated clips the classifier names as their prompt does, and the same for shuffled prompts.

    Raises `EvaluationError` for a generated label that the classifier does not know and for another frame size.
    """
    check_labels_known("generated", generated, "the real clips", classifier.labels)
    named = classifier.name(generated.videos)
    confusion: dict[str, dict[str, int]] = {}
    for asked, answer in zip(generated.labels, named, strict=True):
        row = confusion.setdefault(asked, {})
        row[answer] = row.get(answer, 0) + 1
    names, counts = np.unique(generated.labels, return_counts=True)
    possible = 2 * counts.max() <= len(generated)
    return PromptResult(
        prompt_accuracy=_agreement(generated.labels, named),
        prompt_accuracy_shuffled=_agreement(shuffled_labels(generated.labels), named) if possible else None,
        prompt_accuracy_chance=1.0 / len(classifier.labels),
        classifier_real_accuracy=classifier.real_accuracy,
        classifier_real_frame_accuracy=classifier.real_frame_accuracy,
        classifier_clips_fitted=classifier.fitted_clips,
        classifier_clips_unseen=classifier.unseen_clips,
        per_label={
            str(name): confusion[name].get(name, 0) / int(count) for name, count in zip(names, counts, strict=True)
        },
        confusion={asked: dict(sorted(confusion[asked].items())) for asked in sorted(confusion)},
        named=named,
    )


def _agreement(labels: Sequence[str], named: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(labels, named, strict=True)) / len(named)
