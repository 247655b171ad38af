"""The perceptual distance: its formula, and that it behaves as a distance one can train with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from walt.autoencoder.config import PerceptualConfig
from walt.autoencoder.efficientnet import EfficientNetLite0, WeightsMissingError
from walt.autoencoder.perceptual import EPSILON, PerceptualDistance
from walt.autoencoder.torch_file import TorchFileError
from walt.config import ConfigError
from walt.training.module import Functional, count_parameters

ROWS, FRAMES, SIDE = 2, 2, 32


@pytest.fixture(scope="module")
def distance():
    try:
        return PerceptualDistance.load()
    except WeightsMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def measure(distance):
    """(a, b) -> distances and their gradient in `a`, compiled once for all tests."""

    def run(params, a, b):
        value, pull = jax.vjp(lambda a: distance(params, a, b), a)
        return value, pull(jnp.ones_like(value))[0]

    compiled = jax.jit(run)
    return lambda a, b: compiled(distance.params, jnp.asarray(a), jnp.asarray(b))


def video(seed: int) -> np.ndarray:
    """Noise of all scales [b, t, h, w, 3] in [0, 1]: the finest blur changes it and so does the coarsest."""
    rng = np.random.default_rng(seed)
    noise = [blurred(rng.normal(size=(ROWS, FRAMES, SIDE, SIDE, 3)), scale) for scale in (0.01, 1, 2, 4)]
    return np.clip(0.5 + 0.15 * sum(n / n.std() for n in noise), 0, 1).astype(np.float32)


def blurred(clips: np.ndarray, strength: float) -> np.ndarray:
    return ndimage.gaussian_filter(clips, (0, 0, strength, strength, 0)).astype(clips.dtype)


def test_by_its_formula(distance, measure):
    a, b = video(0), video(1)
    network = Functional(lambda _: EfficientNetLite0(stages=5))
    features = jax.jit(lambda w, x: network.bind({}, w).features(x))
    stages = []
    for stage in PerceptualConfig().stages:
        f, g = (np.asarray(features(distance.params, x.reshape(-1, SIDE, SIDE, 3))[stage], np.float64) for x in (a, b))
        f, g = (x / np.sqrt((x**2).sum(-1, keepdims=True) + EPSILON) for x in (f, g))
        stages.append(((f - g) ** 2).sum(-1).mean((1, 2)).reshape(ROWS, FRAMES).mean(1))
    np.testing.assert_allclose(measure(a, b)[0], np.mean(stages, axis=0), rtol=1e-4)


def test_zero_for_equals_and_symmetric_and_positive(measure):
    a, b = video(0), video(1)
    there, back = measure(a, b)[0], measure(b, a)[0]
    np.testing.assert_allclose(measure(a, a)[0], np.zeros(ROWS), atol=1e-10)  # against 0.1 to 4
    np.testing.assert_allclose(there, back, rtol=1e-5)
    assert there.shape == (ROWS,) and np.all(there > 0.1) and np.all(there < 4)


def test_each_clip_and_frame_counts_for_itself(measure):
    a, b = video(0), video(1)
    half = a.copy()
    half[0, 0] = b[0, 0]
    whole, changed = measure(b, a)[0], measure(half, a)[0]
    only = np.stack([b[0, 0]] * FRAMES), np.stack([a[0, 0]] * FRAMES)
    expected = measure(*(np.stack([clip, clip]) for clip in only))[0][0] / FRAMES
    assert float(changed[0]) == pytest.approx(float(expected), rel=1e-4)
    assert 0 < changed[0] < whole[0] and changed[1] < 1e-10


def test_grows_with_blur(measure):
    a = video(0)
    distances = np.stack([measure(blurred(a, strength), a)[0] for strength in (0.3, 0.5, 1.0, 2.0, 4.0)])
    assert np.all(distances[0] > 0) and np.all(np.diff(distances, axis=0) > 0)


def test_gradient_is_finite_everywhere_and_that_of_the_distance(measure):
    a, b = video(0), video(1)
    gradient = measure(a, b)[1]
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient).max(axis=(2, 3, 4)) > 0)
    step = 1e-3 * gradient / np.sqrt(np.square(gradient).sum())
    slope = float(np.sum(measure(a + step, b)[0] - measure(a - step, b)[0])) / 2
    assert slope == pytest.approx(float(np.sum(gradient * step)), rel=0.02)
    for frames in (np.zeros_like(a), np.ones_like(a), a):
        assert np.all(np.isfinite(measure(frames, frames)[1]))


def test_resizes_first(distance):
    config = PerceptualConfig(stages=(0,), size=32)
    sized, plain = (PerceptualDistance.load(config=c) for c in (config, PerceptualConfig(stages=(0,))))
    a, b = (jax.random.uniform(jax.random.key(k), (1, 1, 48, 72, 3)) for k in (0, 1))
    small = [jax.image.resize(x, (1, 1, 32, 48, 3), "bilinear") for x in (a, b)]
    np.testing.assert_allclose(sized(sized.params, a, b), plain(plain.params, *small), rtol=1e-5)
    assert count_parameters(sized.params) < count_parameters(distance.params) / 100  # no more than the stages need


def test_refuses(distance, tmp_path):
    with pytest.raises(ValueError, match=r"between two videos .* got \(1, 1, 8, 8, 3\) and \(1, 2, 8, 8, 3\)"):
        distance(distance.params, jnp.zeros((1, 1, 8, 8, 3)), jnp.zeros((1, 2, 8, 8, 3)))
    (tmp_path / "weights.pth").write_bytes(b"others")
    with pytest.raises(TorchFileError, match="damaged or another file"):
        PerceptualDistance.load(tmp_path / "weights.pth")


@pytest.mark.parametrize("stages", [(), (7,), (-1,), (1, 0), (2, 2)])
def test_refuses_stages(stages):
    with pytest.raises(ConfigError, match="increasing numbers from 0 to 6"):
        PerceptualConfig(stages=stages)
    with pytest.raises(ConfigError, match="at least 32"):
        PerceptualConfig(size=16)
