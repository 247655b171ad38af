"""The autoencoder written a second time in PyTorch, where torch is installed, and its benchmark."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder.convolution import FORMS
from walt.autoencoder.model import Autoencoder
from walt.experiment.presets import MINI
from walt.training.module import Functional

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = dataclasses.replace(
    MINI,
    latent_channels=4,
    base_channels=8,
    channel_multipliers=(1, 2, 3),
    temporal_kernels=(1, 3, 3),
    patchify=2,
    groups=4,
)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("bench_autoencoder", "torch_autoencoder"):
        sys.modules.pop(name, None)


STORED = Path(__file__).parent / "data" / "torch_autoencoder.npz"
"""What PyTorch made of `weights` and `clip`; `--update-golden` writes it anew where torch is installed."""


def weights(functional):
    """Random weights from numpy alone, biases and scales included: a mistake in those would not show at 0 and 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            value /= np.sqrt(np.prod(leaf.shape[:-1]))
        else:
            value = 0.1 * value + (path[-1].key == "scale")
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, functional.abstract_params)


def clip(frames):
    return np.random.default_rng(1).uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)


def ours(frames):
    """(latents, video decoded from them)."""
    functional = Functional(partial(Autoencoder, SMALL))
    model = functional.bind(weights(functional), {"latent_mean": jnp.zeros(4), "latent_std": jnp.ones(4)})
    latents = model.encode_raw(jnp.asarray(clip(frames)))
    return latents, model.decode_raw(latents)


def theirs(frames):
    from torch_autoencoder import TorchAutoencoder, from_torch, to_torch

    model = TorchAutoencoder(SMALL, weights(Functional(partial(Autoencoder, SMALL))))
    latents = model.encoder(to_torch(clip(frames)))
    return from_torch(latents), from_torch(model.decoder(latents))


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert np.std(b) > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("frames", [1, 9])
def test_latents_and_video_equal_those_of_pytorch(frames):
    pytest.importorskip("torch")
    assert_same(ours(frames), theirs(frames))


def test_latents_and_video_equal_what_pytorch_once_made(request):
    if request.config.getoption("--update-golden"):
        latents, video = theirs(5)
        np.savez_compressed(STORED, latents=latents, video=video)
    with np.load(STORED) as stored:
        assert_same(ours(5), (stored["latents"], stored["video"]))


def test_the_benchmark_compares_the_same_convolution():
    import bench_autoencoder

    rng = np.random.default_rng(0)
    x, kernel, cotangent = (
        jnp.asarray(rng.normal(size=size), jnp.float32) for size in [(1, 5, 6, 6, 2), (3, 3, 3, 2, 3), (1, 2, 4, 4, 3)]
    )
    results = {
        name: [run(x, kernel, cotangent) for run in bench_autoencoder.passes(form, (2, 1, 1)).values()]
        for name, form in FORMS.items()
    }
    for name, found in results.items():
        for ours, reference in zip(found, results["plain"], strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_benchmark_takes_medians_in_turns():
    import bench_autoencoder

    calls: list[str] = []
    seconds = bench_autoencoder.medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and set(seconds) == {"a", "b"} and min(seconds.values()) >= 0
