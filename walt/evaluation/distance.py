"""The Fréchet distance of two sets of videos under a protocol, with what a reader needs to judge it.

A figure has its published name (FVD, FID) only if the network's weights are the published ones; from any others it is a `frechet_distance`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from walt.data import media
from walt.evaluation import card, features, networks
from walt.evaluation.clips import EvaluationError
from walt.evaluation.features import ALONE, Extractor, Share
from walt.evaluation.footage import Footage, of_arrays
from walt.evaluation.measure import RealStatistics, VideoDistance, measure, sensitivity_rows
from walt.evaluation.protocols import Protocol, protocol_named
from walt.evaluation.sensitivity import OF_MOTION, SPOILT, spoilt


def evaluate_videos(
    real: np.ndarray | Sequence[np.ndarray],
    generated: np.ndarray | Sequence[np.ndarray],
    protocol: str | Protocol = "tfgan-reference",
    *,
    weights: networks.Arrays | None = None,
    intervals: int = 100,
    seed: int = 0,
) -> VideoDistance:
    """The distance of videos in memory, [N, T, H, W, 3] or sequences of [T, H, W, 3], uint8 or floats in [0, 1].

    Args:
      protocol: a name of `walt.evaluation.protocols`.
      weights: of the protocol's network, see `Network.read`, whose default they have.
      intervals: subsets that the confidence intervals are made of; 0 for none.
      seed: of which clips of longer real videos are taken, and of subsets.

    Raises:
      EvaluationError: unknown protocol, missing weights, no videos, unlike shapes, fewer than nine frames, floats of another range.
    """
    chosen = protocol_named(protocol) if isinstance(protocol, str) else protocol
    footage = of_arrays(real, "real"), of_arrays(generated, "generated")
    return evaluate_footage(*footage, chosen, weights=weights, intervals=intervals, seed=seed)


def evaluate_footage(
    real: Footage | RealStatistics,
    generated: Footage,
    protocol: Protocol,
    *,
    weights: networks.Arrays | None = None,
    cache: Path | None = None,
    intervals: int = 100,
    seed: int = 0,
    save_real: Path | None = None,
    sensitivity: bool = False,
    share: Share = ALONE,
    sampled: Mapping[str, Any] | None = None,
) -> VideoDistance:
    """`evaluate_videos` of any footage, or of stored statistics of the real one; features are kept in `cache`.

    With `save_real` the statistics of the real footage are written there, for `read_real`. With `sensitivity` the figures are followed by
    those of two halves of the real clips, and of the generated ones spoilt in known ways. The processes of a job, each with its `share`,
    all call this, and all have the figures. `sampled` is what the card is to say of how the generated videos were made. Raises
    `EvaluationError` as `evaluate_videos`, and for statistics under another protocol, network or seed.
    """
    extractor = Extractor(protocol, weights)
    chosen = seed if protocol.subset == "random" else None
    features_of = partial(features.extract_features, extractor=extractor, seed=seed, cache=cache, share=share)
    shown: Footage | None = None
    if isinstance(real, RealStatistics):
        of_real = checked(real, extractor, seed)
    else:
        shown = real.some(protocol.num_real, chosen)
        of_real = real_statistics(real, extractor, cache, seed, share)
    if save_real is not None and share.index == 0:
        write_real(of_real, save_real)
    wanted = None if protocol.num_generated is None else protocol.num_generated * protocol.repeats
    some = generated.some(wanted, chosen)
    of_generated = features_of(some, random_start=False, title="generated")
    found = measure(of_real, of_generated, protocol, intervals, seed)
    found = replace(found, footage=(shown, some))
    if sampled is not None:
        found = replace(found, card={**found.card, "sampled": dict(sampled)})
    if not sensitivity:
        return found
    of_spoilt = {
        how: features_of(spoilt(some, how), random_start=False, title=how).values
        for how in SPOILT
        if protocol.frames != 1 or how not in OF_MOTION
    }
    return replace(found, figures={**found.figures, "sensitivity": sensitivity_rows(of_real, of_spoilt, protocol)})


def evaluate_pairs(
    originals: Footage,
    reconstructions: Footage,
    protocol: Protocol,
    *,
    weights: networks.Arrays | None = None,
    cache: Path | None = None,
    intervals: int = 100,
    seed: int = 0,
    share: Share = ALONE,
) -> VideoDistance:
    """The distance of reconstructions to the very clips that they are of, whose card says that they are pairs. Raises as `evaluate_footage`."""
    found = evaluate_footage(
        originals,
        reconstructions,
        for_pairs(protocol),
        weights=weights,
        cache=cache,
        intervals=intervals,
        seed=seed,
        share=share,
    )
    return replace(found, card={**found.card, "paired": True})


def for_pairs(protocol: Protocol) -> Protocol:
    """The protocol for equally many clips of two kinds, the same frames of both."""
    return replace(protocol, selection="first", num_real=None, num_generated=None, repeats=1)


# ---- statistics of real footage

SHIPPED = {"atari-heldout": Path(__file__).parent / "_statistics" / "atari-heldout.npz"}
"""What comes with the package, by name: I3D features of 128 held-out clips of the Atari footage, 17 frames of 64x64, under `tfgan-reference`."""


def stored_statistics(real: str) -> Path | None:
    """The file of statistics that `real` names: one that is shipped, or an npz; None for anything else, which is footage."""
    return SHIPPED.get(real) or (Path(real) if real.endswith(".npz") else None)


def write_real(statistics: RealStatistics, path: Path) -> None:
    """As one npz: `values`, and `card` and `described` as JSON."""
    with media.atomic_path(path) as temporary:
        card_text, described = json.dumps(statistics.card), json.dumps(statistics.described)
        np.savez_compressed(temporary, values=statistics.values, card=card_text, described=described)


def read_real(path: Path) -> RealStatistics:
    """What `write_real` wrote. Raises `EvaluationError` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            described = json.loads(str(stored["described"])) if "described" in stored else []
            pairs = tuple((str(caption), str(label)) for caption, label in described)
            return RealStatistics(stored["values"], json.loads(str(stored["card"])), described=pairs)
    except Exception as error:  # zip, numpy and json raise plain and differing types
        raise EvaluationError(f"{path} holds no statistics of real clips (--save_real writes them): {error}") from error


def real_statistics(
    footage: Footage,
    extractor: Extractor,
    cache: Path | None,
    seed: int,
    share: Share = ALONE,
) -> RealStatistics:
    """Of as many videos as the protocol asks for, if there are as many. Raises `EvaluationError` as `extract_features`."""
    protocol = extractor.protocol
    some = footage.some(protocol.num_real, seed if protocol.subset == "random" else None)
    random_start = protocol.selection == "random"
    found = features.extract_features(
        some, extractor, random_start=random_start, seed=seed, cache=cache, title="real", share=share
    )
    of = {"sha256": found.fingerprint, "from": Path(footage.description).name, "clips": len(found.values)}
    head = card.of_extraction(extractor, found.clip_shape, seed)
    described = tuple(some.videos[row].describe() for row in found.rows)
    return RealStatistics(found.values, {**head, "real": {**of, "bad": list(found.bad)}}, found.rows, described)


def checked(statistics: RealStatistics, extractor: Extractor, seed: int) -> RealStatistics:
    """The statistics themselves. Raises `EvaluationError` if they were made under another protocol, network or seed."""
    expected = card.of_extraction(extractor, tuple(statistics.card.get("clip_shape", ())), seed)
    stored = {name: statistics.card.get(name) for name in expected}
    if unlike := card.first_unlike(stored, expected):
        raise EvaluationError(f"the stored statistics of real clips were made otherwise: {unlike}")
    return statistics
