"""Protocols say what they mean, and hold the settings that their sources state."""

import dataclasses

import pytest

from walt.evaluation import EvaluationError
from walt.evaluation.protocols import PROTOCOLS, protocol_named
from walt.evaluation.resize import Resize


def test_settings_are_those_of_their_sources():
    settings = {
        name: (
            p.frames,
            p.num_real,
            p.num_generated,
            p.repeats,
            p.divisor,
            p.epsilon,
            [(r.size, r.rule) for r in p.resizes],
        )
        for name, p in PROTOCOLS.items()
    }
    tf1 = (224, "tf1")
    assert settings == {
        "magvit-ucf101": (16, 10_000, 10_000, 4, "N-1", 1e-3, [tf1]),
        "magvit-k600": (16, 50_000, 50_000, 4, "N-1", 1e-3, [(64, "tf1"), tf1]),
        "stylegan-v-2048-16f": (16, 2048, 2048, 1, "N", 1e-3, [(224, "half-pixel")]),
        "cd-fvd": (16, None, 2048, 1, "N", 1e-5, [(224, "half-pixel")]),
        "walt-t2v-ucf101": (16, 10_000, 10_000, 1, "N-1", 1e-3, [tf1]),
        "tfgan-reference": (None, None, None, 1, "N-1", 1e-3, [tf1]),
        "efficientnet-frames": (None, None, None, 1, "N-1", 1e-3, []),
        "pytorch-fid": (1, None, None, 1, "N-1", 1e-3, [(299, "half-pixel")]),
        "tf-fid": (1, None, 50_000, 1, "N-1", 1e-3, [(299, "tf1")]),
        "c3d-is": (16, None, 10_000, 1, "N-1", 1e-3, [(128, "half-pixel")]),
    }
    assert all(protocol.name == name and protocol.source for name, protocol in PROTOCOLS.items())
    assert "17" in PROTOCOLS["walt-t2v-ucf101"].left_open[0]


def test_unknown_and_impossible_protocols_are_refused():
    with pytest.raises(EvaluationError, match=r"unknown protocol 'ucf101'.*magvit-ucf101.*tfgan-reference"):
        protocol_named("ucf101")
    base = PROTOCOLS["magvit-ucf101"]
    with pytest.raises(EvaluationError, match="at least 9 frames, got 8"):
        dataclasses.replace(base, frames=8)
    with pytest.raises(EvaluationError, match="last size must be 224, got 64"):
        dataclasses.replace(base, resizes=(Resize(64, "tf1"),))
    for name in ("selection", "subset", "quantise"):
        with pytest.raises(EvaluationError, match=f"{name} must be .*, got 'any'"):
            dataclasses.replace(base, **{name: "any"})
    assert dataclasses.replace(base, stride=3).span == 46
