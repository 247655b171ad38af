"""What a save costs the training loop: in one run, stretches of steps that begin with a save beside stretches without one.

    python tests/benchmarks/bench_saving.py [--every=100] [--pairs=10] [--width=1024] [--layers=4] [--rows=1024] [--json=FILE]

A run saves before every second stretch of `every` steps; each is compared with the next one, so that what else the machine does weighs on both
alike. The share that is lost is what saving every so many steps costs. The model is a stack of square matrices under Adam with averages, so
a checkpoint holds 16 bytes per parameter: the state of a real run with less compute per byte than any model here has, which is the
unfavourable case. Saving goes on in the background and takes its processor time from the training: on a CPU that is a cost, on an
accelerator it is the host's time.
"""

from __future__ import annotations

import argparse
import json
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


def stretches(arguments):
    """Seconds of the stretches with a save, and of the one after each; the first pair, in which the run begins, is left out."""
    every, pairs = arguments.every, arguments.pairs
    config = TrainingConfig(
        num_steps=2 * every * (pairs + 1) + 1,
        checkpoint_every=2 * every,
        log_every=50,
        keep_checkpoints=1,
        optimizer=OptimizerConfig(warmup_steps=1),
    )
    rows = Rows(arguments.rows, arguments.width)
    with tempfile.TemporaryDirectory() as workdir:
        task = Stack(arguments.width, arguments.layers)
        train(task, rows, config, workdir, resolved_config=to_config_dict(config), devices=jax.devices()[:1])
    # The batch of a step is asked for after the save of that step, and step 0 is saved before all others: what lies between the batches
    # of steps n-1 and m-1 are the save of step n and the steps n to m-1.
    seconds = np.diff(rows.times[2 * every - 1 :: every])[: 2 * pairs]
    return seconds[0::2], seconds[1::2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in {"every": 100, "pairs": 10, "width": 1024, "layers": 4, "rows": 1024}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    saving, without = stretches(arguments)
    lost = np.median(saving - without)
    low, share, high = np.percentile(1 - without / saving, [25, 50, 75])
    megabytes = 16 * arguments.layers * arguments.width**2 / 1e6
    found = {
        "megabytes": megabytes,
        "every": arguments.every,
        "seconds_per_step": np.median(without) / arguments.every,
        "share_lost": share,
        "share_lost_quartiles": [low, high],
        "seconds_lost_per_save": lost,
        "stretches": {"saving": saving.tolist(), "without": without.tolist()},
    }
    print(
        f"{megabytes:.0f} MB every {arguments.every} steps of {found['seconds_per_step']:.3f} s: {100 * share:.1f} % of the step rate "
        f"(quartiles {100 * low:.1f} to {100 * high:.1f} %, {arguments.pairs} pairs), {lost:.2f} s per save"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
