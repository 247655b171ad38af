"""A bundle written by the first release of format 1: it must load, and mean the same, for ever.

The files in `data/` are never made again: if this test fails, the change is wrong, not the file.
"""

from pathlib import Path

import numpy as np
import pytest

import walt

DATA = Path(__file__).parent / "data"


def test_a_stored_bundle_of_format_1_loads_and_means_the_same():
    expected = np.load(DATA / "format_1_expected.npz")
    pipeline = walt.load(DATA / "format_1")
    assert pipeline.fps == 12.5 and pipeline.licences == ("random weights, no rights reserved",)
    video = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(pipeline.encode(video), expected["latents"], rtol=1e-3, atol=1e-3)
    latents = np.random.default_rng(0).normal(size=(2, 2, 2, 2)).astype(np.float32)
    for name, found in (
        ("decoded", pipeline.decode(latents)),
        ("generated", pipeline.generate("a red ball moves left", seed=3)),
    ):
        assert found.shape == expected[name].shape
        # Rounding differs between machines; another meaning would differ by far more.
        assert np.abs(found.astype(int) - expected[name]).mean() < 0.5, name


@pytest.mark.parametrize("name", ["walt.json", "autoencoder.safetensors", "tokenizer.model"])
def test_the_stored_bundle_is_small(name):
    assert (DATA / "format_1" / name).stat().st_size < 40_000
