"""What fewer steps and reused layers save, and what they cost: time, and the distance to the video that many steps make of the same noise.

    python tests/benchmarks/bench_sampling.py [--checkpoint=mini] [--rounds=3] [--seed=0]

PSNR is over all pixels of one video for each of the model's labels, against DDIM with 500 steps and nothing reused. Times are ratios within this run, the
settings taking turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np

import walt
from walt.generation.pipeline import Pipeline

PROMPTS = tuple(f"a game of {name}" for name in ("Boxing", "Enduro", "Freeway", "Road Runner"))
REFERENCE = {"solver": "ddim", "steps": 500}
SETTINGS = {
    "DDIM, 50 steps": {"solver": "ddim", "steps": 50},
    "DDIM, 50 steps, reuse 0.05": {"solver": "ddim", "steps": 50, "reuse": 0.05},
    "DDIM, 50 steps, reuse 0.1": {"solver": "ddim", "steps": 50, "reuse": 0.1},
    "DDIM, 50 steps, reuse 0.2": {"solver": "ddim", "steps": 50, "reuse": 0.2},
    "DDIM, 35 steps": {"solver": "ddim", "steps": 35},
    "DDIM, 25 steps": {"solver": "ddim", "steps": 25},
    "DDIM, 10 steps": {"solver": "ddim", "steps": 10},
    "DPM-Solver++, 25 steps": {"solver": "dpmpp_2m", "steps": 25},
    "DPM-Solver++, 10 steps": {"solver": "dpmpp_2m", "steps": 10},
    "Heun along the flow, 10 steps": {"solver": "flow_heun", "steps": 10},
}


def make(pipeline: Pipeline, seed: int, **settings: object) -> np.ndarray:
    """Videos one at a time, as a user asks for them: passes are saved where a video needs none."""
    return np.stack([pipeline.generate(prompt, seed=seed, **settings) for prompt in PROMPTS]).astype(np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a - b) ** 2)))


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Of the seconds of each, which take turns; all have been run before."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pipeline = walt.load(arguments.checkpoint)
    pipeline.sampler = dataclasses.replace(pipeline.sampler, reuse=0.0)
    reference = make(pipeline, arguments.seed, **REFERENCE)
    found = {name: psnr(make(pipeline, arguments.seed, **settings), reference) for name, settings in SETTINGS.items()}
    runs = {name: lambda s=settings: make(pipeline, arguments.seed, **s) for name, settings in SETTINGS.items()}
    seconds = medians(runs, arguments.rounds)
    first = next(iter(SETTINGS))
    print(
        f"| {arguments.checkpoint}, guidance {pipeline.sampler.guidance:g} | times as fast | PSNR to 500 steps |\n|---|---|---|"
    )
    for name in SETTINGS:
        print(f"| {name} | {seconds[first] / seconds[name]:.2f} | {found[name]:.1f} dB |")


if __name__ == "__main__":
    main()
