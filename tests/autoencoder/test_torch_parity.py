"""The autoencoder against an independent implementation in PyTorch, where torch is installed, and its benchmark."""

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


@pytest.mark.parametrize("frames", [1, 9])
def test_latents_and_video_equal_those_of_pytorch(frames):
    pytest.importorskip("torch")
    from torch_autoencoder import TorchAutoencoder, from_torch, to_torch

    functional = Functional(partial(Autoencoder, SMALL))
    params, extra = jax.jit(functional.init)(jax.random.key(0))
    # Biases and scales begin at 0 and 1, where a mistake in them would not show.
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [leaf + 0.1 * rng.normal(size=leaf.shape) for leaf in leaves])
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    video = rng.uniform(-1, 1, (2, frames, 16, 24, 3)).astype(np.float32)
    model, theirs = functional.bind(params, extra), TorchAutoencoder(SMALL, params)
    latents = model.encode_raw(jnp.asarray(video))
    np.testing.assert_allclose(latents, from_torch(theirs.encoder(to_torch(video))), rtol=1e-3, atol=1e-4)
    decoded = from_torch(theirs.decoder(to_torch(latents)))
    np.testing.assert_allclose(model.decode_raw(latents), decoded, rtol=1e-3, atol=1e-4)


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
