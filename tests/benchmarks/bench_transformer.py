"""Speed of the transformer: windows against full attention, and against the same network in PyTorch where installed.

    python tests/benchmarks/bench_transformer.py              # mini size: train step and 50-step sampling, beside PyTorch
    python tests/benchmarks/bench_transformer.py --attention  # windows against full attention at 5x16x16 tokens, width 1024
    python tests/benchmarks/bench_transformer.py --attention --topology=v5e:2x2   # compiled for a TPU (needs libtpu)

Seconds are medians over rounds in which all take turns; on a machine shared with others only the ratios mean something.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_autoencoder import cycles, medians

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.process import make_tables
from walt.diffusion.samplers import sample
from walt.training.module import Functional
from walt.transformer import Transformer, TransformerConfig, transformer_flops
from walt.transformer.attention import attend
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
FULL = dataclasses.replace(MINI, spatial_window=(1, 8, 8), spacetime_window=(5, 8, 8))
COMPILATIONS = [0]


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
    """Scores, softmax and mixing of one S and one ST layer, without their projections; with full attention both see everything."""
    grid, width, heads = (5, 16, 16), 1024, 16
    rng = np.random.default_rng(0)
    dtype = jnp.bfloat16 if topology else jnp.float32
    query, key, value, cotangent = (jnp.asarray(rng.normal(size=(1, *grid, width)), dtype) for _ in range(4))

    def through(sizes):
        def run(query, key, value):
            outputs = []
            for size in sizes:
                windows = Windows(grid, size)
                parts = (windows.split(x) for x in (query, key, value))
                mixed = attend(*(part.reshape(*part.shape[:3], heads, -1) for part in parts))
                outputs.append(windows.merge(mixed.reshape(*mixed.shape[:3], -1)))
            return outputs

        return run

    def trained(run):
        # A cotangent of ones would let the compiler replace products by sums.
        return lambda *inputs: jax.vjp(run, *inputs)[1]([cotangent] * 2)

    windowed, full = through([(1, 16, 16), (5, 8, 8)]), through([grid, grid])
    jobs = {"windows": windowed, "full attention": full}
    jobs |= {f"{name}, with gradients": trained(job) for name, job in jobs.items()}
    flops = {"windows": 4 * 1280 * width * (256 + 320), "full attention": 4 * 1280 * width * 2 * 1280}
    print(
        f"\nattention alone, 5x16x16 tokens, width {width}: FLOP ratio {flops['full attention'] / flops['windows']:.2f}"
    )
    if topology:
        cost = {name: cycles(job, (query, key, value), topology) for name, job in jobs.items()}
    else:
        compiled = {name: jax.jit(job) for name, job in jobs.items()}
        cost = medians({name: lambda f=f: f(query, key, value) for name, f in compiled.items()}, rounds)
    for name, value in cost.items():
        kind, _, gradients = name.partition(",")
        rate = flops[kind] * (3 if gradients else 1) / value
        print(
            f"  {name:32} "
            + (
                f"{value:12,} cycles  {rate:7,.0f} FLOP/cycle"
                if topology
                else f"{value:8.4f} s  {rate / 1e9:6.0f} GFLOP/s"
            )
        )
    for suffix in ("", ", with gradients"):
        print(f"  windows are {cost['full attention' + suffix] / cost['windows' + suffix]:.2f} times as fast{suffix}")
    sizes = dict(latent_shape=grid, in_channels=16, out_channels=8, width=width, depth=2, heads=heads)
    layer, whole = (
        TransformerConfig(**sizes, spatial_window=(1, 16, 16), spacetime_window=window) for window in ((5, 8, 8), grid)
    )
    print(f"  FLOP ratio of a whole pair of layers: {transformer_flops(whole) / transformer_flops(layer):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--topology", help="with --attention: a TPU to compile for instead, such as v5e:2x2")
    arguments = parser.parse_args()
    if arguments.topology:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    if arguments.attention:
        attention(arguments.rounds, arguments.topology)
    else:
        whole_network(arguments.batch, arguments.steps, arguments.rounds)


if __name__ == "__main__":
    main()
