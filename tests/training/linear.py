"""Linear regression as a Task, with noise per row, something in `extra`, and two groups if asked: small enough to train hundreds of steps in a second.

Run as a program it trains in the given work directory: `python linear.py WORKDIR '{"num_steps": 20}'`. With a third argument, such as `raise:5`
or `kill:5`, that is how this process fails when it asks for the data of step 5.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from walt.config import to_config_dict
from walt.parallel import initialize
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh, rows_of_process
from walt.training import checksums
from walt.training.config import AnomalyConfig, OptimizerConfig, SavingConfig, TrainingConfig, WatchdogConfig
from walt.training.loop import train
from walt.training.preemption import watching
from walt.training.task import RowCost

FEATURES, OUTPUTS = 8, 16


@dataclass(frozen=True)
class LinearTask:
    groups: tuple[str, ...] = ("model",)
    noise: float = 0.1
    bad_gradients_at: tuple[int, ...] = ()
    bad_loss_at: int | tuple[int, ...] | None = None
    jumps_at: tuple[int, ...] = ()

    def init(self, key):
        def group(key):
            kernel = 0.1 * jax.random.normal(key, (FEATURES, OUTPUTS))
            return {"linear": {"kernel": kernel, "bias": jnp.zeros((OUTPUTS,))}}

        params = {name: group(jax.random.fold_in(key, i)) for i, name in enumerate(self.groups)}
        return params, {"mean_loss": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}

    def loss(self, params, batch, key):
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (OUTPUTS,)))(keys)
        total = 0.0
        for group in params.values():
            predicted = batch["x"] @ group["linear"]["kernel"] + group["linear"]["bias"]
            total += jnp.mean((predicted - batch["y"] + self.noise * noise) ** 2)
        return total

    def gradients(self, state, batch, key):
        loss, grads = jax.value_and_grad(self.loss)(state.params, batch, key)
        if self.bad_gradients_at:
            bad, last = jnp.isin(state.step, jnp.array(self.bad_gradients_at)), self.groups[-1]
            grads[last] = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), grads[last])
        if self.bad_loss_at is not None:
            loss = jnp.where(jnp.isin(state.step, jnp.atleast_1d(jnp.array(self.bad_loss_at))), jnp.nan, loss)
        if self.jumps_at:
            factor = jnp.where(jnp.isin(state.step, jnp.array(self.jumps_at)), 1e4, 1.0)
            loss, grads = factor * loss, jax.tree.map(lambda g: factor * g, grads)
        extra = {"mean_loss": 0.9 * state.extra["mean_loss"] + 0.1 * loss, "count": state.extra["count"] + 1}
        return grads, extra, {"loss": loss}

    def eval_step(self, params, extra, batch, key):
        return {"loss": self.loss(params, batch, key)}

    def batch_spec(self):
        return {
            "x": jax.ShapeDtypeStruct((FEATURES,), jnp.float32),
            "y": jax.ShapeDtypeStruct((OUTPUTS,), jnp.float32),
            "row": jax.ShapeDtypeStruct((), jnp.int32),
        }

    def row_cost(self):
        return RowCost(tokens=1, flops=6.0 * FEATURES * OUTPUTS)


@dataclass
class LinearLoader:
    """Batches that are a pure function of the step; remembers which steps were asked for."""

    batch_size: int = 16
    seconds: float = 0.0
    asked: list[int] = field(default_factory=list)
    failure: str = ""
    hang: Callable = lambda step: None
    rows: Sequence[int] | None = None

    def batches(self, start_step=0):
        truth = np.random.default_rng(0).normal(size=(FEATURES, OUTPUTS)).astype(np.float32)
        step = start_step
        while True:
            time.sleep(self.seconds)
            self.asked.append(step)
            self.hang(step)
            self.fail(step)
            x = np.random.default_rng((1, step)).normal(size=(self.batch_size, FEATURES)).astype(np.float32)
            batch = {"x": x, "y": x @ truth, "row": np.arange(self.batch_size, dtype=np.int32)}
            rows = self.batch_size // jax.process_count()
            mine = (
                range(rows * jax.process_index(), rows * (jax.process_index() + 1)) if self.rows is None else self.rows
            )
            yield {name: entry[list(mine)] for name, entry in batch.items()}
            step += 1

    def example_ids(self, step):
        rows = self.batch_size // jax.process_count()
        return np.arange(rows)[:, None] + step * self.batch_size + jax.process_index() * rows

    def fail(self, step):
        if self.failure == f"raise:{step}":
            raise RuntimeError("the disk of this host is full")
        if self.failure == f"kill:{step}":
            os.kill(os.getpid(), signal.SIGKILL)


def make_config(**changes):
    optimizer = OptimizerConfig(**({"learning_rate": 0.05, "warmup_steps": 2} | changes.pop("optimizer", {})))
    defaults = dict(num_steps=20, log_every=4, checkpoint_every=10, ema_decay=0.9, optimizer=optimizer)
    return TrainingConfig(**(defaults | changes))


def run(workdir, config=None, task=None, loader=None, **arguments):
    config = config or make_config()
    arguments.setdefault("resolved_config", to_config_dict(config))
    arguments.setdefault("devices", jax.devices()[:1])
    return train(task or LinearTask(), loader or LinearLoader(), config, workdir, **arguments)


class Slow:
    """Parts of a run that take as long as they are told to, and leave a file beside the work directory when they begin."""

    def __init__(self, workdir, seconds):
        self.workdir, self.seconds = workdir, seconds

    def at(self, place):
        if place in self.seconds:
            Path(f"{self.workdir}.{place}.{jax.process_index()}").touch()
            time.sleep(self.seconds[place])

    def task(self, **settings):
        slow = self

        class Task(LinearTask):
            def gradients(self, state, batch, key):
                slow.at("compile")
                return super().gradients(state, batch, key)

        return Task(**settings)

    def finish(self, state):
        self.at("finish")
        return state

    def evaluate(self, state, step):
        self.at("evaluate")
        return {}

    def seal(self, write=checksums.write):
        def slowly(folder, items):
            if not folder.name.startswith("0"):
                self.at("save")
            write(folder, items)

        checksums.write = slowly


@dataclass
class SlowEvaluator:
    evaluate: Callable
    every: int = 10
    name: str = "slow"
    takes_long: bool = True

    def __call__(self, state, step):
        return self.evaluate(state, step)


def main(workdir, settings, failure=""):
    initialize(heartbeat_timeout=10)
    slow = Slow(workdir, settings.pop("slow", {}))
    slow.seal()
    loader = LinearLoader(settings.pop("batch_size", 16), settings.pop("seconds_per_batch", 0.0), failure=failure)
    loader.hang = lambda step: slow.at("data") if step == 20 else None
    devices, task = jax.devices(), settings.pop("task", {})
    if settings.pop("interleaved", False):
        devices = devices[::2] + devices[1::2]
        loader.rows = rows_of_process(loader.batch_size, make_mesh(MeshConfig(), devices))
    sections = {"watchdog": WatchdogConfig, "saving": SavingConfig, "anomalies": AnomalyConfig}
    settings |= {name: kind(**settings[name]) for name, kind in sections.items() if name in settings}
    evaluators = [SlowEvaluator(slow.evaluate)] if "evaluate" in slow.seconds else []
    run(
        workdir,
        make_config(**settings),
        task=slow.task(**task),
        loader=loader,
        devices=devices,
        evaluators=evaluators,
        on_finish=slow.finish if "finish" in slow.seconds else None,
    )


if __name__ == "__main__":
    with watching():
        main(sys.argv[1], json.loads(sys.argv[2]), *sys.argv[3:])
