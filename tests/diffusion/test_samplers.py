"""Sampling Gaussian data with the ideal denoiser; the order of each solver is in test_solvers.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.configs import SamplerConfig
from walt.diffusion.parameterisation import from_x0_and_noise
from walt.diffusion.process import EDM, FlowMatching, make_tables
from walt.diffusion.samplers import lay_out, row_noise, sample

MEAN = np.array([1.0, -0.5, 0.25, 2.0])
COVARIANCE = np.array([[1.0, 0.6, 0.0, 0.1], [0.6, 0.8, 0.2, 0.0], [0.0, 0.2, 0.5, -0.3], [0.1, 0.0, -0.3, 0.7]])
SHAPE = (1, 4)  # one frame of four numbers


def ideal_denoiser(schedule, prediction="v", mean=MEAN, covariance=COVARIANCE):
    """E[prediction | x_t] for data N(mean, covariance)."""
    values, vectors = np.linalg.eigh(covariance)
    vectors = jnp.asarray(vectors)

    def denoise(x_t, t, previous_x0):
        alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
        alpha, sigma = jnp.asarray(alpha, x_t.dtype), jnp.asarray(sigma, x_t.dtype)
        residual = (x_t - alpha * mean) @ vectors / (alpha**2 * values + sigma**2)
        x0 = mean + (residual * values * alpha) @ vectors.T
        noise = (residual * sigma) @ vectors.T
        return from_x0_and_noise(prediction, x0, noise, alpha, sigma).astype(x_t.dtype)

    return denoise


def draw(steps, count, schedule=None, prediction="v", seed=0, **options):
    schedule = schedule or make_tables("linear", True)
    keys = jax.random.split(jax.random.key(seed), count)
    config = SamplerConfig(steps=steps, **options)
    run = jax.jit(
        lambda keys: sample(ideal_denoiser(schedule, prediction), schedule, config, SHAPE, keys, prediction=prediction)
    )
    noise = row_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), SHAPE)
    return np.asarray(run(keys), np.float64)[:, 0], np.asarray(noise, np.float64)[:, 0]


@pytest.mark.parametrize(
    ("prediction", "options"),
    [
        pytest.param("v", {}, id="v-eta 0"),
        pytest.param("v", {"eta": 1.0}, id="v-eta 1", marks=pytest.mark.slow),
        pytest.param("v", {"eta": 0.5}, id="v-eta half", marks=pytest.mark.slow),
        pytest.param("v", {"spacing": "linspace"}, id="v-linspace"),
        pytest.param("x0", {}, id="x0-eta 0"),
        pytest.param("x0", {"eta": 1.0}, id="x0-eta 1", marks=pytest.mark.slow),
        pytest.param("x0", {"eta": 0.5}, id="x0-eta half", marks=pytest.mark.slow),
        pytest.param("x0", {"spacing": "linspace"}, id="x0-linspace"),
    ],
)
def test_samples_have_the_mean_and_covariance_of_the_data(prediction, options):
    samples, _ = draw(500, 20_000, prediction=prediction, **options)
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.035)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=0.04)


def test_noise_prediction_without_zero_terminal_snr():
    samples, _ = draw(500, 20_000, schedule=make_tables("cosine", False), prediction="noise")
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.035)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=0.04)


def test_one_step_from_pure_noise_is_the_mean():
    samples, _ = draw(1, 8)
    np.testing.assert_allclose(samples, np.broadcast_to(MEAN, samples.shape), atol=1e-5)


def test_trailing_spacing_starts_at_noise_and_ends_at_data():
    assert indices(steps=4) == [1000, 750, 500, 250, 0]
    assert indices(steps=3) == [1000, 667, 333, 0]
    assert indices(steps=1000) == list(range(1000, -1, -1))
    assert indices(steps=3, spacing="linspace") == [1000, 500, 1, 0]
    assert indices(steps=4, spacing="leading") == [751, 501, 251, 1, 0]
    assert indices(steps=3, spacing="leading") == [667, 334, 1, 0]
    for steps in (1, 7, 50, 333, 999):
        for spacing in ("trailing", "linspace"):
            found = indices(steps=steps, spacing=spacing)
            assert found[0] == 1000 and found[-1] == 0 and np.all(np.diff(found) < 0)


def indices(schedule=None, **options):
    return np.round(lay_out(SamplerConfig(**options), schedule or make_tables("linear", True)).t * 1000).tolist()


def test_continuous_times():
    grid = lay_out(SamplerConfig(steps=4), FlowMatching())
    np.testing.assert_allclose(grid.sigma, [1, 0.75, 0.5, 0.25, 0])
    # Even spacing in the time of edm is Karras et al.'s spacing of sigma.
    karras, even = (lay_out(SamplerConfig(steps=9, spacing=spacing), EDM()) for spacing in ("karras", "linspace"))
    np.testing.assert_allclose(karras.sigma, even.sigma, atol=1e-9)
    assert karras.sigma[0] == pytest.approx(80) and karras.sigma[-2] == pytest.approx(0.002) and karras.sigma[-1] == 0


def test_karras_spacing_of_a_table():
    schedule = make_tables("linear", False)
    grid = lay_out(SamplerConfig(steps=10, spacing="karras"), schedule)
    np.testing.assert_allclose(grid.t[[0, -2, -1]], [1, 1e-3, 0])
    strides = np.diff((grid.sigma / grid.alpha)[:-1] ** (1 / 7))
    np.testing.assert_allclose(strides, strides.mean(), rtol=0.1)  # as even as the times of the table allow
    with pytest.raises(ConfigError, match="visits some of the 1000 times of the schedule twice"):
        indices(make_tables("linear", False), steps=500, spacing="karras")


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (make_tables("linear", True), {"solver": "heun"}, "use 'flow_heun'"),
        (FlowMatching(), {"spacing": "karras"}, "finite sigma / alpha"),
        (make_tables("linear", False), {"solver": "heun", "churn": 1.0}, "edm schedule"),
    ],
    ids=["heun", "karras", "churn"],
)
def test_steps_that_a_schedule_does_not_take(schedule, options, message):
    with pytest.raises(ConfigError, match=message):
        lay_out(SamplerConfig(steps=4, **options), schedule)


def test_a_row_depends_on_its_own_key_only():
    schedule = make_tables("linear", True)
    keys = jax.random.split(jax.random.key(3), 5)
    config = SamplerConfig(steps=7, eta=1.0)
    run = jax.jit(lambda keys: sample(ideal_denoiser(schedule), schedule, config, SHAPE, keys))
    together, again = run(keys), run(keys)
    np.testing.assert_array_equal(together, again)
    alone = run(keys[3:4])
    np.testing.assert_allclose(alone[0], together[3], atol=1e-5)
    other = run(keys[::-1])
    np.testing.assert_allclose(other[::-1], together, atol=1e-5)


def test_previous_x0_is_zeros_first_and_then_the_last_estimate():
    """A denoiser that predicts x0 = 1 + what it was fed: the last of n estimates is n."""
    schedule = make_tables("linear", True)

    def denoise(x_t, t, previous_x0):
        alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
        x0 = previous_x0 + 1
        return from_x0_and_noise("v", x0, (x_t - alpha * x0) / sigma, alpha, sigma)

    latents = sample(denoise, schedule, SamplerConfig(steps=6), SHAPE, jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(latents, 6, atol=1e-2)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"steps": 1001},
        {"eta": 2.0},
        {"spacing": "following"},
        {"solver": "rk4"},
        {"solver": "heun", "eta": 0.5},
        {"churn": 1.0},
        {"guidance_interval": (0.8, 0.2)},
        {"guidance_rescale": 2.0},
        {"guidance": -1.0},
        {"guidance_schedule": "x"},
        {"guidance_power": 0.0},
    ],
)
def test_bad_sampler_settings_name_the_field(bad):
    with pytest.raises(ConfigError, match=list(bad)[-1]):
        dataclasses.replace(SamplerConfig(), **bad)
