"""Speed of the autoencoder: our convolution against XLA's own, and against the same network in PyTorch where installed.

    python tests/benchmarks/bench_autoencoder.py            # whole network: train step, encode, decode
    python tests/benchmarks/bench_autoencoder.py --passes   # every form of one convolution: forward and both gradients
    python tests/benchmarks/bench_autoencoder.py [--passes] --topology=v5e:2x2   # compiled for a TPU (needs libtpu)
    python tests/benchmarks/bench_autoencoder.py --block --batch=8 --topology=v5e:2x2    # of a residual block at full size

Seconds are medians over rounds in which all take turns; on a machine shared with others only the ratios mean something.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from walt.autoencoder import layers
from walt.autoencoder.config import AutoencoderConfig
from walt.autoencoder.convolution import FORMS, convolve, plain, planes
from walt.autoencoder.model import Autoencoder, ResBlock, reconstruct
from walt.experiment.presets import MINI
from walt.planning.topology import parse_topology
from walt.training.module import Functional

SHAPES = {  # of one convolution: (batch, frames, height, width, channels in, channels out), kernel, strides
    "mini, finest level": ((4, 17, 16, 16, 48, 48), (1, 3, 3), (1, 1, 1)),
    "mini, down": ((4, 17, 16, 16, 48, 48), (3, 3, 3), (2, 2, 2)),
    "mini, latent grid": ((4, 5, 8, 8, 128, 128), (3, 3, 3), (1, 1, 1)),
    "narrow, large": ((1, 9, 64, 64, 64, 64), (3, 3, 3), (1, 1, 1)),
    "published, first": ((1, 5, 64, 64, 3, 128), (3, 3, 3), (1, 1, 1)),
    "published, last": ((1, 5, 64, 64, 128, 3), (3, 3, 3), (1, 1, 1)),
    "published, down": ((1, 5, 64, 64, 128, 128), (3, 3, 3), (2, 2, 2)),
    "published, finest level": ((1, 5, 64, 64, 128, 128), (3, 3, 3), (1, 1, 1)),
    "published, latent grid": ((1, 5, 16, 16, 512, 512), (3, 3, 3), (1, 1, 1)),
}
Run = Callable[[], object]


def medians(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns; the first round, which compiles, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(title: str, seconds: dict[str, float], reference: str) -> None:
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:12} {value:8.4f} s   {seconds[reference] / value:5.2f}x {reference}")


# The whole network.


def whole_network(config: AutoencoderConfig, batch: int, rounds: int, topology: str | None) -> None:
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.uniform(-1, 1, (batch, 17, 64, 64, 3)), jnp.float32)
    functional = Functional(partial(Autoencoder, config))
    state = jax.jit(functional.init)(jax.random.key(0))
    latents = jnp.asarray(rng.normal(size=(batch, *config.latent_shape(17, 64, 64))), jnp.float32)
    jobs = _ours(functional, state, video, latents)
    forms = {"ours": convolve, "plain": plain, "planes": planes}
    theirs: dict[str, Run] = {}
    if topology:
        print("estimated cycles (smaller is better)")
    elif importlib.util.find_spec("torch"):
        theirs = _theirs(config, state[0], np.asarray(video), np.asarray(latents))
    else:
        print("torch is not installed: no comparison with it")
    for job, (function, arguments) in jobs.items():
        under = {name: partial(_under, form, function) for name, form in forms.items()}
        if topology:
            figures = {name: f"{cycles(f, arguments, topology):,}" for name, f in under.items()}
            print(f"{job:12}", *(f"{name} {figure:>12}   " for name, figure in figures.items()), flush=True)
            continue
        runs: dict[str, Run] = {name: partial(jax.jit(f), *arguments) for name, f in under.items()}
        if job in theirs:
            runs["torch"] = theirs[job]
        seconds = medians(runs, rounds)
        table(f"{job}, {batch} clips of 17x64x64", seconds, "plain")
        if "torch" in seconds:
            print(f"  ours is {seconds['torch'] / seconds['ours']:.2f} times as fast as torch")


def _under(form: Callable, function: Callable, *arguments: object) -> object:
    """The function with another convolution; for one that is traced anew."""
    with mock.patch.object(layers, "convolve", form):
        return function(*arguments)


def _ours(functional: Functional, state: tuple, video: jax.Array, latents: jax.Array) -> dict[str, tuple]:
    """Every job as a function and its arguments."""
    params, rest = state
    optimizer = optax.adam(1e-4)

    def train(params, opt, video):
        def loss(params):
            return jnp.square(reconstruct(functional.bind(params, rest), video) - video).mean()

        grads = jax.grad(loss)(params)
        updates, opt = optimizer.update(grads, opt)
        return optax.apply_updates(params, updates), opt

    return {
        "train step": (train, (params, optimizer.init(params), video)),
        "encode": (lambda params, video: functional.bind(params, rest).encode_raw(video), (params, video)),
        "decode": (lambda params, latents: functional.bind(params, rest).decode_raw(latents), (params, latents)),
    }


def _theirs(config: AutoencoderConfig, params: dict, video: np.ndarray, latents: np.ndarray) -> dict[str, Run]:
    import torch
    from torch_autoencoder import TorchAutoencoder, to_torch

    model = TorchAutoencoder(config, jax.tree.map(np.asarray, params))
    clips, codes = to_torch(video), to_torch(latents)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(clips), clips).backward()
        optimizer.step()

    def without_gradients(part: Callable, x: object) -> None:
        with torch.no_grad():
            part(x)

    return {
        "train step": train,
        "encode": lambda: without_gradients(model.encoder, clips),
        "decode": lambda: without_gradients(model.decoder, codes),
    }


# One convolution, pass by pass.


def passes(form: Callable, strides: tuple[int, int, int]) -> dict[str, Callable]:
    """Forward, gradient of the input, gradient of the kernel, as functions of (x, kernel, cotangent)."""

    def forward(x, kernel, cotangent):
        return form(x, kernel, strides)

    def input_gradient(x, kernel, cotangent):
        return jax.vjp(lambda x: form(x, kernel, strides), x)[1](cotangent)

    def kernel_gradient(x, kernel, cotangent):
        return jax.vjp(lambda kernel: form(x, kernel, strides), kernel)[1](cotangent)

    return {"forward": forward, "input": input_gradient, "kernel": kernel_gradient}


def all_passes(rounds: int, topology: str | None) -> None:
    unit = "estimated cycles (smaller is better)" if topology else "GFLOP/s (larger is better)"
    print(f"{unit}\n{'':26}{'pass':10}" + "".join(f"{name:>14}" for name in FORMS))
    for title, ((b, t, h, w, c, d), kernel, strides) in SHAPES.items():
        dtype = jnp.bfloat16 if topology else jnp.float32
        padded = (b, *(n + k - 1 for n, k in zip((t, h, w), kernel)), c)
        out = [(n - k) // s + 1 for n, k, s in zip(padded[1:4], kernel, strides)]
        arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in (padded, (*kernel, c, d), (b, *out, d))]
        flops = 2 * b * np.prod(out) * np.prod(kernel) * c * d
        for what in ("forward", "input", "kernel"):
            functions = {name: passes(form, strides)[what] for name, form in FORMS.items()}
            if topology:
                figures = {name: f"{cycles(f, arguments, topology):,}" for name, f in functions.items()}
            else:
                rng = np.random.default_rng(0)
                values = [jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in arguments]
                seconds = medians({name: partial(jax.jit(f), *values) for name, f in functions.items()}, rounds)
                figures = {name: f"{flops / value / 1e9:.0f}" for name, value in seconds.items()}
            print(f"{title:26}{what:10}" + "".join(f"{figure:>12}" for figure in figures.values()), flush=True)


def one_block(batch: int, topology: str) -> None:
    """Forward, and forward and backward, of a block of 128 channels on clips of 17x128x128; MFU counts the products of its two convolutions."""
    config = AutoencoderConfig(dtype="bfloat16")
    abstract = nnx.eval_shape(lambda: ResBlock(128, 128, 3, config, nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    x = jax.ShapeDtypeStruct((batch, 17, 128, 128, 128), jnp.bfloat16)

    def forward(state, x):
        return nnx.merge(graph, state)(x)

    def backward(state, x):
        return jax.grad(lambda *each: jnp.sum(forward(*each).astype(jnp.float32) ** 2), argnums=(0, 1))(state, x)

    generation = parse_topology(topology).generation
    products = 2 * 2 * x.size * 27 * 128
    for name, function, passes in (("forward", forward, 1), ("forward and backward", backward, 3)):
        found = cycles(function, (state, x), topology)
        mfu = passes * products / (found / generation.clock * generation.peak_flops)
        print(f"{name:22}{found / 1e6:8.1f} million cycles, {mfu:.2f} of the peak", flush=True)


def cycles(function: Callable, arguments: Sequence, topology: str) -> int:
    """What the TPU compiler estimates for one run on one chip: the sum over the program's fusions and convolutions."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tuple(arguments))
    text = jax.jit(function).lower(*placed).compile().as_text()
    return sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--passes", action="store_true")
    parser.add_argument("--block", action="store_true")
    parser.add_argument("--topology", help="a TPU to compile for instead, such as v5e:2x2")
    arguments = parser.parse_args()
    if arguments.topology:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if arguments.block:
        one_block(arguments.batch, arguments.topology or parser.error("--block is of a TPU: give a --topology"))
    elif arguments.passes:
        all_passes(arguments.rounds, arguments.topology)
    else:
        whole_network(MINI, arguments.batch, arguments.rounds, arguments.topology)


if __name__ == "__main__":
    main()
