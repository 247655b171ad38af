"""The transformer against an independent implementation in PyTorch, where torch is installed."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.training.module import Functional
from walt.transformer import Transformer


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import bench_transformer

    yield bench_transformer
    for name in ("bench_transformer", "bench_autoencoder", "torch_transformer"):
        sys.modules.pop(name, None)


def test_the_same_numbers_and_gradients(bench):
    torch = pytest.importorskip("torch")
    from torch_transformer import TorchTransformer

    config = dataclasses.replace(
        bench.MINI, width=32, depth=4, heads=2, latent_shape=(5, 4, 8), spatial_window=(1, 4, 4)
    )
    model = Functional(lambda rngs: Transformer(config, rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), model.abstract_params)
    given = bench.inputs(config, 2)

    def loss(params):
        arrays = (jnp.asarray(given[name]) for name in ("latents", "timestep"))
        out = model.bind(params)(*arrays, is_image=jnp.zeros(2, bool), class_label=jnp.asarray(given["label"]))
        return jnp.square(out).mean(), out

    (_, ours), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    twin = TorchTransformer(config, params)
    theirs = twin(*(torch.tensor(given[name]) for name in ("latents", "timestep")), torch.tensor(given["label"]).long())
    theirs.square().mean().backward()
    expected = theirs.detach().numpy()
    assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        name = ".".join(key.key for key in path)
        other = twin.weights.get_parameter(name).grad.numpy()
        assert np.linalg.norm(grad - other) < 1e-3 * np.linalg.norm(other) + 1e-6, name


@pytest.mark.slow
def test_the_benchmark_runs(bench, capsys):
    small = dataclasses.replace(bench.MINI, width=16, depth=2, heads=2)
    jobs, _ = bench.ours(small, 1, 2)
    assert [np.isfinite(jax.tree.leaves(job())[0]).all() for job in jobs.values()] == [True, True]
