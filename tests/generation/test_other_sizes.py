"""What does not fit in memory is refused before it is begun."""

import dataclasses

import pytest

from walt.generation import memory
from walt.generation.pipeline import Pipeline
from walt.generation.request import GenerationError

BALL = "a red ball moves left"


def test_the_estimate_grows_with_all_that_is_asked(tiny):
    needs = lambda shape, rows=1, branches=2, **changes: memory.estimate(  # noqa: E731
        dataclasses.replace(tiny.transformer, **changes), tiny.autoencoder, shape, rows, branches
    )
    plain = needs((2, 2, 2, 2))
    assert needs((2, 2, 2, 2), rows=3) == 3 * plain
    for more in (needs((2, 4, 2, 2)), needs((2, 2, 2, 2), width=64), needs((2, 2, 2, 2), branches=30)):
        assert more > plain


def test_what_does_not_fit_is_refused_with_the_largest_that_does(tiny, tiny_bundle, monkeypatch):
    pipeline = Pipeline(tiny_bundle)
    needed = memory.estimate(tiny.transformer, tiny.autoencoder, (2, 16, 8, 2), 8, 2)
    monkeypatch.setattr(memory, "available", lambda device: needed)
    with pytest.raises(GenerationError, match=r"256x128 needs about .* GB are free: 128x64 would fit, or a smaller"):
        pipeline.generate(BALL, height=256, width=128)
    monkeypatch.setattr(memory, "available", lambda device: 10)
    with pytest.raises(GenerationError, match="nothing of that shape fits"):
        pipeline.generate(BALL)
    memory.check_memory(tiny.transformer, tiny.autoencoder, (2, 99, 99, 2), 8, 2, None)
