"""DDIM on Gaussian data, where the ideal denoiser and the exact flow are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.configs import SamplerConfig
from walt.diffusion.parameterisation import from_x0_and_noise
from walt.diffusion.process import make_schedule
from walt.diffusion.samplers import row_noise, sample, sampling_timesteps

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


def exact_flow(noise, mean=MEAN, covariance=COVARIANCE):
    """Where the probability flow takes x_1 = noise when x_1 holds nothing of the data."""
    values, vectors = np.linalg.eigh(covariance)
    return mean + noise @ vectors * np.sqrt(values) @ vectors.T


def draw(steps, count, schedule=None, prediction="v", seed=0, **options):
    schedule = schedule or make_schedule("linear", True)
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
        pytest.param("v", {"eta": 1.0}, id="v-eta 1"),
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
    samples, _ = draw(500, 20_000, schedule=make_schedule("cosine", False), prediction="noise")
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.035)
    np.testing.assert_allclose(np.cov(samples.T), COVARIANCE, atol=0.04)


def test_ddim_converges_to_the_exact_flow_with_order_one():
    schedule = make_schedule("linear", True)
    keys = jax.random.split(jax.random.key(1), 64)
    steps = np.array([10, 20, 40, 125, 250])
    with jax.enable_x64(True):
        errors = []
        for count in steps:
            config = SamplerConfig(steps=int(count))
            found = jax.jit(
                lambda k, c=config: sample(ideal_denoiser(schedule), schedule, c, SHAPE, k, dtype=jnp.float64)
            )(keys)
            noise = row_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), SHAPE, jnp.float64)
            errors.append(np.sqrt(np.mean((np.asarray(found) - exact_flow(np.asarray(noise))) ** 2)))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.85 < slope < 1.2, (slope, errors)


def test_one_step_from_pure_noise_is_the_mean():
    samples, _ = draw(1, 8)
    np.testing.assert_allclose(samples, np.broadcast_to(MEAN, samples.shape), atol=1e-5)


def test_trailing_spacing_starts_at_noise_and_ends_at_data():
    assert sampling_timesteps(SamplerConfig(steps=4)).tolist() == [1000, 750, 500, 250, 0]
    assert sampling_timesteps(SamplerConfig(steps=3)).tolist() == [1000, 667, 333, 0]
    assert sampling_timesteps(SamplerConfig(steps=1000)).tolist() == list(range(1000, -1, -1))
    assert sampling_timesteps(SamplerConfig(steps=3, spacing="linspace")).tolist() == [1000, 500, 1, 0]
    for steps in (1, 7, 50, 333, 999):
        for spacing in ("trailing", "linspace"):
            indices = sampling_timesteps(SamplerConfig(steps=steps, spacing=spacing))
            assert indices[0] == 1000 and indices[-1] == 0 and np.all(np.diff(indices) < 0)


def test_a_row_depends_on_its_own_key_only():
    schedule = make_schedule("linear", True)
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
    schedule = make_schedule("linear", True)

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
        {"spacing": "leading"},
        {"guidance": -1.0},
        {"guidance_schedule": "x"},
        {"guidance_power": 0.0},
    ],
)
def test_bad_sampler_settings_name_the_field(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        dataclasses.replace(SamplerConfig(), **bad)
