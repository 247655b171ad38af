"""The PyTorch network of the package `cd-fvd` with our weights, to compare logits and speed with.

The names are there without torch as well; the network needs torch and that package.
"""

import importlib

import numpy as np

BLOCKS = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
BRANCHES = {"branch_0": "b0", "branch_3": "b3b", **{f"branch_{name}": f"b{name}" for name in ("1a", "1b", "2a", "2b")}}
ENDS = {"bias": "bn.bias", "mean": "bn.running_mean", "variance": "bn.running_var", "kernel": "conv3d.weight"}


def state_dict(arrays) -> dict[str, np.ndarray]:
    """The weights under the names and in the layout of that network."""
    state = {}
    for name, array in arrays.items():
        block, *branch, end = name.split(".")
        value = np.ascontiguousarray(array.transpose(4, 3, 0, 1, 2)) if array.ndim == 5 else array
        if block == "logits":
            state[f"logits.conv3d.{'weight' if end == 'kernel' else end}"] = value
            continue
        unit = ".".join([BLOCKS.get(block, block.capitalize()), *(BRANCHES[name] for name in branch)])
        state[f"{unit}.{ENDS[end]}"] = value
        if end == "mean":
            state[f"{unit}.bn.weight"] = np.ones_like(array)
            state[f"{unit}.bn.num_batches_tracked"] = np.array(0, np.int64)
    return state


def torch_network(arrays, epsilon: float = 1e-3):
    """The network of `cd-fvd` with these weights; ImportError without that package and torch."""
    torch = importlib.import_module("torch")
    network = importlib.import_module("cdfvd.third_party.i3d.pytorch_i3d").InceptionI3d(400, in_channels=3).eval()
    network.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict(arrays).items()})
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = epsilon
    return network


def torch_logits(arrays, videos: np.ndarray, epsilon: float = 1e-3) -> np.ndarray:
    """[n, 400] in float64."""
    torch = importlib.import_module("torch")
    network = torch_network(arrays, epsilon).double()
    with torch.no_grad():
        return network(torch.from_numpy(videos.transpose(0, 4, 1, 2, 3).copy()).double()).numpy()
