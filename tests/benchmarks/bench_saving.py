"""What a save costs the training loop: steps per second with checkpoints and without, on the same machine, in turns.

    python tests/benchmarks/bench_saving.py [--steps=600] [--every=100] [--width=1024] [--layers=4] [--turns=3] [--json=FILE]

The model is a stack of square matrices under Adam with averages, so a checkpoint holds 16 bytes per parameter: the state of a real run with
less compute per byte than any model here has, which is the unfavourable case. Saving goes on in the background and takes its processor
time from the training: on a CPU that is a cost, on an accelerator it is the host's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from walt.config import to_config_dict
from walt.training.config import OptimizerConfig, TrainingConfig
from walt.training.loop import train
from walt.training.task import RowCost


@dataclass(frozen=True)
class Stack:
    """A Task: matrices of one width, one after another, on a batch of rows."""

    width: int
    layers: int

    def init(self, key):
        kernels = jax.random.normal(key, (self.layers, self.width, self.width)) / self.width**0.5
        return {"model": {"stack": {"kernel": kernels}}}, {}

    def loss(self, params, batch):
        rows, _ = jax.lax.scan(
            lambda x, kernel: (jnp.tanh(x @ kernel), None), batch["x"], params["model"]["stack"]["kernel"]
        )
        return jnp.mean((rows - batch["x"]) ** 2)

    def gradients(self, state, batch, key):
        loss, grads = jax.value_and_grad(self.loss)(state.params, batch)
        return grads, state.extra, {"loss": loss}

    def eval_step(self, params, extra, batch, key):
        return {"loss": self.loss(params, batch)}

    def batch_spec(self):
        return {"x": jax.ShapeDtypeStruct((self.width,), jnp.float32)}

    def row_cost(self):
        return RowCost(1, 6.0 * self.layers * self.width**2)


class Rows:
    """The same rows at every step."""

    def __init__(self, rows, width):
        self.batch = {"x": np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)}
        self.times = []

    def batches(self, start_step=0):
        while True:
            self.times.append(time.perf_counter())
            yield self.batch


def seconds_per_step(arguments, every):
    """Of one run, its first steps and its last checkpoint left out: those that every run has."""
    config = TrainingConfig(
        num_steps=arguments.steps,
        checkpoint_every=every,
        log_every=50,
        keep_checkpoints=1,
        optimizer=OptimizerConfig(warmup_steps=1),
    )
    rows = Rows(arguments.rows, arguments.width)
    with tempfile.TemporaryDirectory() as workdir:
        train(
            Stack(arguments.width, arguments.layers),
            rows,
            config,
            workdir,
            resolved_config=to_config_dict(config),
            devices=jax.devices()[:1],
        )
    return (rows.times[-1] - rows.times[20]) / (len(rows.times) - 21)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {"steps": 600, "every": 100, "width": 1024, "layers": 4, "rows": 1024, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    without, saving = [], []
    for _ in range(arguments.turns):
        without.append(seconds_per_step(arguments, 10**9))
        saving.append(seconds_per_step(arguments, arguments.every))
    plain, saved = statistics.median(without), statistics.median(saving)
    megabytes = 16 * arguments.layers * arguments.width**2 / 1e6
    lost = (saved - plain) * arguments.every
    found = {
        "megabytes": megabytes,
        "steps_per_second_without": 1 / plain,
        "steps_per_second_saving": 1 / saved,
        "share_lost": 1 - plain / saved,
        "seconds_lost_per_save": lost,
        "turns": [without, saving],
    }
    print(
        f"{megabytes:.0f} MB every {arguments.every} steps of {plain:.3f} s: {100 * found['share_lost']:.1f} % of the step rate, "
        f"{lost:.2f} s per save",
        file=sys.stderr,
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
