"""Speed of the transformer: windows against full attention, and against the same network in PyTorch where installed.

    python tests/benchmarks/bench_transformer.py              # mini size: train step and 50-step sampling, beside PyTorch
    python tests/benchmarks/bench_transformer.py --attention  # windows against full attention at 5x16x16 tokens, width 1024
    python tests/benchmarks/bench_transformer.py --attention --topology=v5e:2x2   # compiled for a TPU (needs libtpu), by XLA's operations
    python tests/benchmarks/bench_transformer.py --dense --topology=v5e:2x2       # what part of a TPU's peak XLA's attention reaches

Seconds are medians over rounds in which all take turns; on a machine shared with others only the ratios mean something.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_autoencoder import cycles, medians
from flax import nnx

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.process import make_tables
from walt.diffusion.samplers import sample
from walt.planning.topology import parse_topology
from walt.training.module import Functional
from walt.transformer import Transformer, TransformerConfig, transformer_flops
from walt.transformer.attention import Shared, Tokens, WindowAttention, attend, mix
from walt.transformer.config import Size3
from walt.transformer.windows import Windows

MINI = TransformerConfig(
    latent_shape=(5, 8, 8),
    in_channels=8,
    out_channels=8,
    width=256,
    depth=8,
    heads=4,
    spatial_window=(1, 8, 8),
    spacetime_window=(5, 4, 4),
    num_classes=10,
    self_conditioning=False,
)
FULL = dataclasses.replace(MINI, spatial_window=(5, 8, 8), spacetime_window=None)
GRID = (5, 16, 16)
COMPILATIONS = [0]
DENSE_SIZES = [
    (16, 40, 256, 256, 128),
    (16, 32, 320, 320, 128),
    (16, 40, 256, 384, 128),
    (16, 20, 512, 512, 128),
    (15, 8, 1280, 1280, 128),
]


def count_compilations(event: str, seconds: float, **_: object) -> None:
    COMPILATIONS[0] += event.endswith("backend_compile_duration")


def inputs(config: TransformerConfig, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (batch, *config.latent_shape, config.in_channels)
    return {
        "latents": rng.normal(size=shape).astype(np.float32),
        "timestep": rng.uniform(0, 1000, shape[:2]).astype(np.float32),
        "label": rng.integers(0, 10, shape[:2]).astype(np.int32),
    }


def ours(config: TransformerConfig, batch: int, steps: int) -> tuple[dict[str, Callable[[], object]], dict]:
    """Jobs of our transformer, and its parameters."""
    model = Functional(lambda rngs: Transformer(config, rngs))
    params = jax.jit(model.init)(jax.random.key(0))[0]
    given, optimizer = {name: jnp.asarray(value) for name, value in inputs(config, batch).items()}, optax.adamw(1e-4)
    videos = jnp.zeros(batch, bool)

    def forward(params, latents, timestep, label):
        return model.bind(params)(latents, timestep, is_image=videos, class_label=label)

    @jax.jit
    def train(params, opt, given):
        loss = lambda params: jnp.square(forward(params, **given) - given["latents"]).mean()  # noqa: E731
        updates, opt = optimizer.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    @jax.jit
    def draw(params, keys, label):
        denoise = lambda x_t, t, previous_x0: forward(params, x_t, 1000 * t, label)  # noqa: E731
        shape = (*config.latent_shape, config.out_channels)
        return sample(denoise, make_tables("linear", True), SamplerConfig(steps=steps), shape, keys)

    opt, keys = optimizer.init(params), jax.random.split(jax.random.key(1), batch)
    return {
        "train step": lambda: train(params, opt, given),
        f"{steps}-step sampling": lambda: draw(params, keys, given["label"]),
    }, params


def theirs(config: TransformerConfig, params: dict, batch: int, steps: int) -> dict[str, Callable[[], object]]:
    """The same jobs in PyTorch, eager."""
    import torch
    from torch_transformer import TorchTransformer

    model = TorchTransformer(config, jax.tree.map(np.asarray, params))
    given = {name: torch.tensor(value) for name, value in inputs(config, batch).items()}
    given["label"] = given["label"].long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    alpha, sigma = (torch.tensor(table, dtype=torch.float32) for table in vars(make_tables("linear", True)).values())

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(**given), given["latents"]).backward()
        optimizer.step()

    @torch.no_grad()
    def draw() -> None:
        x, label = torch.randn_like(given["latents"]), given["label"]
        for step in range(steps):
            now, after = (round(1000 * (steps - i) / steps) for i in (step, step + 1))
            v = model(x, torch.full(x.shape[:2], float(now)), label)
            x0, noise = alpha[now] * x - sigma[now] * v, sigma[now] * x + alpha[now] * v
            x = alpha[after] * x0 + sigma[after] * noise

    return {"train step": train, f"{steps}-step sampling": draw}


def whole_network(batch: int, steps: int, rounds: int) -> None:
    windows, params = ours(MINI, batch, steps)
    full, _ = ours(FULL, batch, steps)
    torch = theirs(MINI, params, batch, steps) if importlib.util.find_spec("torch") else {}
    if not torch:
        print("torch is not installed: no comparison with it")
    for job in windows:
        runs = {"windows": windows[job], "full attention": full[job]} | ({"torch": torch[job]} if torch else {})
        before = COMPILATIONS[0]
        seconds = medians(runs, rounds)
        print(f"\n{job}, {batch} rows of 5x8x8 tokens, {COMPILATIONS[0] - before} compilations for two programs")
        for name, value in seconds.items():
            print(f"  {name:16} {value:8.4f} s")
        if torch:
            print(f"  ours is {seconds['torch'] / seconds['windows']:.2f} times as fast as torch")


def attention(rounds: int, topology: str | None) -> None:
    """One S and one ST layer at 5x16x16 tokens, against two with full attention."""
    windowed = TransformerConfig(
        latent_shape=GRID,
        in_channels=16,
        out_channels=8,
        width=1024,
        depth=2,
        heads=16,
        spatial_window=(1, 16, 16),
        spacetime_window=(5, 8, 8),
        dtype="bfloat16" if topology else "float32",
    )
    kinds = {"windows": [(1, 16, 16), (5, 8, 8)], "full attention": [GRID, GRID]}
    flops = {"windows": 256 + 320, "full attention": 2 * 1280}
    print(f"5x16x16 tokens, width 1024; FLOP ratio of attention alone {flops['full attention'] / flops['windows']:.2f}")
    compare("attention alone", {name: alone(windowed, sizes) for name, sizes in kinds.items()}, rounds, topology)
    for title, biased in (("layers of attention", True), ("layers without relative biases", False)):
        config = dataclasses.replace(windowed, relative_bias=biased)
        compare(title, {name: layers(config, sizes) for name, sizes in kinds.items()}, rounds, topology)
    full = dataclasses.replace(windowed, spatial_window=GRID, spacetime_window=None)
    print(f"FLOP ratio of pairs of layers with their MLPs: {transformer_flops(full) / transformer_flops(windowed):.2f}")


def tokens(config: TransformerConfig, features: int) -> jax.Array:
    values = np.random.default_rng(0).normal(size=(1, *config.latent_shape, features))
    return jnp.asarray(values, config.dtype)


def alone(config: TransformerConfig, sizes: Sequence[Size3]) -> tuple[Callable[..., list[jax.Array]], object]:
    """Scores, softmax and mixing of windows in their grid, as in the layers: with one scale per feature in place of projections."""

    def run(inputs: tuple) -> list[jax.Array]:
        (scales_of_layers, x), outputs = inputs, []
        for size, scales in zip(sizes, scales_of_layers):
            windows = Windows(config.latent_shape, size)
            own = jnp.concatenate([x * scale for scale in scales], axis=-1)
            none = jnp.zeros((1, config.width))
            shared = Shared((none, none, none), none + 1)
            outputs.append(attend(Tokens(own), shared, windows, heads=config.heads))
        return outputs

    # Scales of its own for each layer: of two equal ones the compiler would compute one.
    scales = tokens(config, config.width)[0, :3, : len(sizes), 0].swapaxes(0, 1)
    return run, (scales, tokens(config, config.width))


def layers(config: TransformerConfig, sizes: Sequence[Size3]) -> tuple[Callable[..., list[jax.Array]], object]:
    """The layers of attention as the model has them: projections, head norms and relative biases included."""
    graphs, weights = zip(*(nnx.split(WindowAttention(config, size, nnx.Rngs(0))) for size in sizes))

    def run(inputs: tuple) -> list[jax.Array]:
        weights, x = inputs
        return [nnx.merge(graph, state)(x) for graph, state in zip(graphs, weights)]

    return run, (weights, tokens(config, config.width))


def compare(title: str, kinds: dict[str, tuple[Callable, object]], rounds: int, topology: str | None) -> None:
    """Forward, and with the gradients of all inputs, of each kind."""
    jobs = {}
    for name, (run, inputs) in kinds.items():
        # A cotangent of ones would let the compiler replace products by sums.
        cotangent = [
            jax.random.normal(jax.random.key(i), y.shape, y.dtype) for i, y in enumerate(jax.eval_shape(run, inputs))
        ]
        jobs[name] = run, (inputs,)
        jobs[f"{name}, with gradients"] = lambda x, ct, run=run: jax.vjp(run, x)[1](ct), (inputs, cotangent)
    if topology:
        cost = {name: cycles(job, arguments, topology) for name, (job, arguments) in jobs.items()}
    else:
        cost = medians({name: partial(jax.jit(job), *arguments) for name, (job, arguments) in jobs.items()}, rounds)
    print(f"\n{title}, {'estimated cycles' if topology else 'seconds'}")
    for suffix in ("", ", with gradients"):
        windows, full = cost["windows" + suffix], cost["full attention" + suffix]
        print(f"  windows {windows:<11,.5g} full attention {full:<11,.5g} {full / windows:5.2f} times as fast{suffix}")


def dense(topology: str) -> None:
    """XLA's attention in its best layout, heads first: FLOPs in the estimated time over those of the peak, by sizes. The kernel is modelled by the best."""
    generation = parse_topology(topology).generation
    peak = generation.peak_flops / generation.devices_per_chip / generation.clock
    print("windows of queries x keys (heads of width): forward, with gradients")
    for heads, windows, queries, keys, width in DENSE_SIZES:
        shapes = [(heads, windows, 1, n, width) for n in (queries, keys, keys)]
        inputs = tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
        flops = 4 * heads * windows * queries * keys * width / peak
        forward = cycles(lambda *qkv: mix(*qkv, None, None), inputs, topology)
        both = cycles(
            lambda ct, *qkv: jax.vjp(lambda *qkv: mix(*qkv, None, None), *qkv)[1](ct), (inputs[0], *inputs), topology
        )
        print(
            f"  {windows:3} of {queries:4} x {keys:4} ({heads:2} of {width:3}): {flops / forward:.3f} {3.5 * flops / both:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--topology", help="with --attention or --dense: a TPU to compile for instead, such as v5e:2x2")
    arguments = parser.parse_args()
    if arguments.topology:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    if arguments.dense:
        dense(arguments.topology or "v5p:2x2x1")
    elif arguments.attention:
        attention(arguments.rounds, arguments.topology)
    else:
        whole_network(arguments.batch, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
