"""Speed of I3D: features per second against the network of the package `cd-fvd` in PyTorch, with the same weights, in one run.

    python tests/benchmarks/bench_evaluation.py                  # 16 frames of 224x224
    python tests/benchmarks/bench_evaluation.py --forms          # our convolution against XLA's own as well
    python tests/benchmarks/bench_evaluation.py --decode=DIR     # a folder of videos, to features: decoding beside computing

Needs torch and cd-fvd (its code alone; weights are random) for the comparison, and says so where they are missing. Seconds are medians over
rounds in which all take turns; on a machine shared with others only the ratios mean something.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from walt.autoencoder.convolution import plain
from walt.evaluation import i3d, i3d_weights
from walt.evaluation.i3d import I3D, weight_tree
from walt.training.module import Functional

Run = Callable[[], object]


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Of a size that keeps values from layer to layer."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in i3d_weights.shapes().items():
        values = random.standard_normal(shape, np.float32)
        if name.endswith(".kernel"):
            values *= np.float32(np.sqrt(2 / np.prod(shape[:-1])))
        arrays[name] = np.abs(values) + np.float32(0.5) if name.endswith(".variance") else values
    return arrays


def ours(arrays: dict[str, np.ndarray], videos: np.ndarray, convolve: Callable | None = None) -> Run:
    """Our network, compiled; with XLA's own convolution in place of ours if `convolve` is given."""
    model, weights = Functional(lambda _: I3D()), weight_tree(arrays)
    run = jax.jit(lambda w, x: model.bind({}, w)(x))
    with mock.patch.object(i3d, "convolve", convolve or i3d.convolve):
        compiled = run.lower(weights, videos).compile()
    return lambda: np.asarray(compiled(weights, videos))


def theirs(arrays: dict[str, np.ndarray], videos: np.ndarray) -> Run:
    """The network of `cd-fvd`."""
    import torch
    import torch_i3d

    network, x = torch_i3d.torch_network(arrays), torch.from_numpy(videos.transpose(0, 4, 1, 2, 3).copy())

    def run() -> np.ndarray:
        with torch.no_grad():
            return network(x).numpy()

    return run


def compare(runs: dict[str, Run], clips: int, rounds: int) -> dict[str, float]:
    """Median seconds per clip of each, the runs taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / clips)
    return {name: statistics.median(values) for name, values in seconds.items()}


def network(arguments: argparse.Namespace) -> None:
    arrays = random_weights()
    shape = (arguments.clips, arguments.frames, 224, 224, 3)
    videos = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    runs = {"walt": ours(arrays, videos)}
    if arguments.forms:
        runs["walt, XLA's 3D convolution"] = ours(arrays, videos, plain)
    if all(importlib.util.find_spec(name) for name in ("torch", "cdfvd")):
        runs["cd-fvd (PyTorch)"] = theirs(arrays, videos)
        a, b = runs["walt"](), runs["cd-fvd (PyTorch)"]()
        print(f"relative difference of the logits: {np.linalg.norm(a - b) / np.linalg.norm(b):.1e}")
    else:
        print("torch or cd-fvd is not installed: no comparison")
    medians = compare(runs, arguments.clips, arguments.rounds)
    for name, median in medians.items():
        print(f"{name:28s} {median:.3f} s per clip, {1 / median:.2f} clips per second")
    if "cd-fvd (PyTorch)" in medians:
        print(f"walt is {medians['cd-fvd (PyTorch)'] / medians['walt']:.2f} times as fast as cd-fvd")


def folder(path: str) -> None:
    """Decoding alone, computing alone, and both at once as `walt evaluate` does it."""
    from walt.evaluation.features import Extractor, _decoded, extract_features
    from walt.evaluation.footage import open_footage
    from walt.evaluation.protocols import PROTOCOLS

    footage, extractor = open_footage(path), Extractor(PROTOCOLS["magvit-ucf101"], random_weights())
    start = time.perf_counter()
    clips = [clip for _, clip in _decoded(footage, extractor.protocol, [0], len(footage), True, 0)]
    decoding = time.perf_counter() - start
    extractor(clips[: extractor.batch_size])()  # compiles
    start = time.perf_counter()
    for first in range(0, len(clips), extractor.batch_size):
        extractor(clips[first : first + extractor.batch_size])()
    computing = time.perf_counter() - start
    start = time.perf_counter()
    extract_features(footage, extractor, random_start=True, seed=0, cache=None, title=path)
    both = time.perf_counter() - start
    print(f"{len(clips)} clips: decoding {decoding:.1f} s, computing {computing:.1f} s, both at once {both:.1f} s")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4, help="of a batch")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--decode", metavar="DIR")
    arguments = parser.parse_args(argv)
    folder(str(Path(arguments.decode))) if arguments.decode else network(arguments)


if __name__ == "__main__":
    main()
