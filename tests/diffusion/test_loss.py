"""Weights of the loss over time."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.configs import DiffusionConfig
from walt.diffusion.loss import frame_losses
from walt.diffusion.parameterisation import from_x0_and_noise

SHAPE = (3, 4, 2, 2, 5)  # rows, frames, height, width, channels


def draw(alpha):
    """A noisy video whose frames have the `alpha` of [3, 4], and predictions of x0 that are off by known errors."""
    rng = np.random.default_rng(0)
    x0, noise, error = (jnp.asarray(rng.normal(size=SHAPE), jnp.float32) for _ in range(3))
    alpha = jnp.asarray(alpha, jnp.float32)[..., None, None, None]
    sigma = jnp.sqrt(1 - alpha**2)
    return x0, noise, alpha, sigma, alpha * x0 + sigma * noise, error


def loss_of(config, x0, noise, alpha, sigma, x_t, error):
    """Of the prediction that stands for x0 + error at x_t."""
    wrong = x0 + error
    value = from_x0_and_noise(config.prediction, wrong, (x_t - alpha * wrong) / sigma, alpha, sigma)
    return frame_losses(config, value, x_t, x0, noise, alpha, sigma)


ALPHA = np.random.default_rng(1).uniform(0.2, 0.97, SHAPE[:2])


@pytest.mark.parametrize("prediction", ["v", "x0", "noise"])
@pytest.mark.parametrize("bounds", [(0.0, 5.0), (1.0, 5.0), (1.0, 1e9)])
def test_snr_weighs_the_error_of_x0_whatever_is_predicted(prediction, bounds):
    config = DiffusionConfig(prediction=prediction, loss_weight="snr", snr_bounds=bounds, zero_terminal_snr=False)
    drawn = draw(ALPHA)
    snr = np.clip(ALPHA**2 / (1 - ALPHA**2), *bounds)
    assert len({*np.round(snr.ravel(), 4)}) > 3
    expected = (snr[..., None, None, None] * np.square(drawn[-1])).mean((2, 3, 4))
    np.testing.assert_allclose(loss_of(config, *drawn), expected, rtol=2e-4)


def test_uniform_is_the_error_of_the_prediction():
    drawn = draw(ALPHA)
    _, _, alpha, sigma, _, error = drawn
    for prediction, size in (("x0", 1.0), ("v", 1 / sigma), ("noise", alpha / sigma)):
        config = DiffusionConfig(prediction=prediction, zero_terminal_snr=False)
        expected = np.square(np.asarray(size * error)).mean((2, 3, 4))
        np.testing.assert_allclose(loss_of(config, *drawn), expected, rtol=2e-3)


def test_p2_is_a_weight_of_the_error_of_the_noise():
    """Choi et al. 2022, equation 8: 1 / (k + SNR)^gamma on the squared error of the noise."""
    config = DiffusionConfig(prediction="x0", loss_weight="p2", p2=(0.5, 2.0), zero_terminal_snr=False)
    drawn = draw(ALPHA)
    _, _, alpha, sigma, _, error = (np.asarray(value) for value in drawn)
    expected = (np.square(alpha / sigma * error) / (0.5 + (alpha / sigma) ** 2) ** 2).mean((2, 3, 4))
    np.testing.assert_allclose(loss_of(config, *drawn), expected, rtol=2e-4)


@pytest.mark.parametrize(("prediction", "schedule"), [("v", "cosine"), ("edm", "edm")])
def test_edm_weight_is_the_uniform_error_of_its_prediction(prediction, schedule):
    weighted, uniform = (
        DiffusionConfig(prediction=prediction, schedule=schedule, loss_weight=weight) for weight in ("edm", "uniform")
    )
    x0, noise, alpha, sigma, x_t, error = draw(ALPHA)
    if schedule == "edm":
        alpha, sigma = jnp.ones_like(alpha), sigma / alpha
        x_t = x0 + sigma * noise
    drawn = (x0, noise, alpha, sigma, x_t, error)
    np.testing.assert_allclose(loss_of(weighted, *drawn), loss_of(uniform, *drawn), rtol=2e-4)


def test_pure_noise_counts_with_the_lower_bound():
    config = DiffusionConfig(prediction="x0", loss_weight="snr")
    drawn = draw(np.zeros(SHAPE[:2]))
    np.testing.assert_allclose(loss_of(config, *drawn), np.square(drawn[-1]).mean((2, 3, 4)), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weight": "min_snr"}, "unknown loss weight 'min_snr', expected one of uniform, snr, p2, edm"),
        ({"snr_bounds": (5.0, 1.0)}, "no bounds"),
        ({"snr_bounds": (0.0, 0.0)}, "no bounds"),
        ({"snr_bounds": (-1.0, 5.0)}, "no bounds"),
        ({"snr_bounds": (1.0, float("inf"))}, "finite"),
        ({"loss_weight": "snr", "snr_bounds": (0.0, 5.0)}, "no weight to it"),
        ({"loss_weight": "p2"}, "no weight to t = 1"),
        ({"p2": (-1.0, 1.0)}, "p2"),
        ({"flow_shift": 0.0}, "flow_shift"),
        ({"times": "normal"}, "unknown times 'normal'"),
    ],
)
def test_unusable_weights_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**changes)
