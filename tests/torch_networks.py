"""The networks of image and video scores in torch, functions of a state dict, written from the descriptions of their architectures.

`python tests/torch_networks.py` writes what they make of given weights to `evaluation/data/scores.npz`, for those who have no torch.
"""

import zlib
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "evaluation" / "data" / "scores.npz"


def weights(shapes):
    """For every name its own numbers, of sizes that keep activations as they are."""
    arrays = {}
    for name, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            arrays[name] = random.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif name.endswith(("bn.weight", "running_var")):
            arrays[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            arrays[name] = random.normal(0, 0.1, shape).astype(np.float32)
    return arrays


def images(count=2, side=96):
    return np.random.default_rng(0).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def clips():
    return np.random.default_rng(1).uniform(-100, 150, (1, 16, 128, 128, 3)).astype(np.float32)


def inception(state, x):
    """Images [b, 3, h, w] to 2,048 means and 1,008 logits without bias."""
    import torch
    from torch.nn import functional as F

    def unit(x, name, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        norm = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.relu(F.batch_norm(x, *norm, training=False, eps=1e-3))

    def average(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def block_35(x, name):
        at = lambda part: f"{name}.{part}"  # noqa: E731
        five = unit(unit(x, at("branch5x5_1")), at("branch5x5_2"), padding=2)
        double = unit(unit(x, at("branch3x3dbl_1")), at("branch3x3dbl_2"), padding=1)
        double = unit(double, at("branch3x3dbl_3"), padding=1)
        return torch.cat([unit(x, at("branch1x1")), five, double, unit(average(x), at("branch_pool"))], 1)

    def block_17(x, name):
        at = lambda part: f"{name}.{part}"  # noqa: E731
        seven = unit(unit(x, at("branch7x7_1")), at("branch7x7_2"), padding=(0, 3))
        seven = unit(seven, at("branch7x7_3"), padding=(3, 0))
        double = unit(x, at("branch7x7dbl_1"))
        for number, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = unit(double, at(f"branch7x7dbl_{number}"), padding=padding)
        return torch.cat([unit(x, at("branch1x1")), seven, double, unit(average(x), at("branch_pool"))], 1)

    def block_8(x, name, pool):
        at = lambda part: f"{name}.{part}"  # noqa: E731
        three = unit(x, at("branch3x3_1"))
        double = unit(unit(x, at("branch3x3dbl_1")), at("branch3x3dbl_2"), padding=1)
        views = [unit(x, at("branch1x1"))]
        views += [unit(three, at(f"branch3x3_2{k}"), padding=p) for k, p in (("a", (0, 1)), ("b", (1, 0)))]
        views += [unit(double, at(f"branch3x3dbl_3{k}"), padding=p) for k, p in (("a", (0, 1)), ("b", (1, 0)))]
        return torch.cat([*views, unit(pool(x), at("branch_pool"))], 1)

    x = unit(unit(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
    x = F.max_pool2d(unit(x, "Conv2d_2b_3x3", padding=1), 3, 2)
    x = F.max_pool2d(unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = block_35(x, name)
    double = unit(unit(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", padding=1)
    double = unit(double, "Mixed_6a.branch3x3dbl_3", 2)
    x = torch.cat([unit(x, "Mixed_6a.branch3x3", 2), double, F.max_pool2d(x, 3, 2)], 1)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = block_17(x, name)
    three = unit(unit(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", 2)
    seven = unit(unit(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", padding=(0, 3))
    seven = unit(unit(seven, "Mixed_7a.branch7x7x3_3", padding=(3, 0)), "Mixed_7a.branch7x7x3_4", 2)
    x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
    x = block_8(block_8(x, "Mixed_7b", average), "Mixed_7c", lambda x: F.max_pool2d(x, 3, 1, 1))
    means = x.mean(dim=(2, 3))
    return torch.cat([means, means @ state["fc.weight"].T], 1)


def c3d(state, x):
    """Clips [b, 3, 16, 112, 112] to logits."""
    from torch.nn import functional as F

    def unit(x, name):
        return F.relu(F.conv3d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))

    x = F.max_pool3d(unit(x, "conv1"), (1, 2, 2), (1, 2, 2))
    x = F.max_pool3d(unit(x, "conv2"), 2, 2)
    x = F.max_pool3d(unit(unit(x, "conv3a"), "conv3b"), 2, 2)
    x = F.max_pool3d(unit(unit(x, "conv4a"), "conv4b"), 2, 2)
    x = F.max_pool3d(unit(unit(x, "conv5a"), "conv5b"), 2, 2, padding=(0, 1, 1)).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return F.linear(x, state["fc8.weight"], state["fc8.bias"])


def made(network, arrays, x):
    """What torch makes of frames with channels last."""
    import torch

    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        return network(state, torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()


def main():
    from walt.evaluation import c3d as our_c3d
    from walt.evaluation import inception as our_inception

    features = made(inception, weights(our_inception.shapes()), images())
    logits = made(c3d, weights(our_c3d.shapes(5)), clips()[:, :, 8:120, 8:120])
    np.savez_compressed(FIXTURE, inception=features, c3d=logits)


if __name__ == "__main__":
    main()
