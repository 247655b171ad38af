"""Guidance against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.configs import SamplerConfig
from walt.diffusion.guidance import guided, scale_over_time
from walt.diffusion.parameterisation import from_x0_and_noise
from walt.diffusion.process import make_tables
from walt.diffusion.samplers import row_noise, sample

SCHEDULE = make_tables("linear", True)
SHAPE = (1, 2)


def gaussian_v(x_t, t, mean, deviation):
    """E[v | x_t] for data N(mean, deviation²)."""
    alpha, sigma = SCHEDULE.alpha(t)[..., None], SCHEDULE.sigma(t)[..., None]
    gain = (x_t - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)
    return from_x0_and_noise("v", mean + alpha * deviation**2 * gain, sigma * gain, alpha, sigma)


def test_guided_score_is_that_of_the_tilted_gaussian_at_every_time():
    """p(x_t|c)^w p(x_t)^(1−w) of two Gaussians is a Gaussian with precision w/s_c² + (1−w)/s² and a mean weighted by precision."""
    weight, (m_c, s_c), (m, s) = 3.0, (1.5, 0.5), (0.2, 1.2)

    def denoise(x_t, t, previous_x0, condition):
        return gaussian_v(x_t, t, condition["mean"][:, None, None], condition["deviation"][:, None, None])

    def condition(mean, deviation):
        return {"mean": jnp.full(4, mean), "deviation": jnp.full(4, deviation)}

    run = jax.jit(guided(denoise, [condition(m, s), condition(m_c, s_c)], [lambda t: jnp.full_like(t, weight)]))
    x_t = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    for time in (0.1, 0.4, 0.7, 0.95):
        t = jnp.full((4, 1), time)
        alpha, sigma = float(SCHEDULE.alpha(t[0, 0])), float(SCHEDULE.sigma(t[0, 0]))
        v = run(x_t, t, jnp.zeros_like(x_t))
        score = -(sigma * x_t + alpha * v) / sigma
        precision = [weight / (alpha**2 * s_c**2 + sigma**2), (1 - weight) / (alpha**2 * s**2 + sigma**2)]
        total = sum(precision)
        mean = (precision[0] * alpha * m_c + precision[1] * alpha * m) / total
        np.testing.assert_allclose(score, -(x_t - mean) * total, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_guided_samples_with_equal_widths_follow_the_guided_flow_exactly(weight):
    """Same width s in both branches: the guided field is that of a Gaussian of width s and mean m + w (m_c − m), so samples are known exactly."""
    conditional, null, deviation = 1.0, -0.5, 0.6

    def denoise(x_t, t, previous_x0, mean):
        return gaussian_v(x_t, t, mean[:, None, None], deviation)

    keys = jax.random.split(jax.random.key(2), 16)
    conditions = [jnp.full(16, null), jnp.full(16, conditional)]
    run = guided(denoise, conditions, [lambda t: jnp.full_like(t, weight)])
    found = sample(run, SCHEDULE, SamplerConfig(steps=500), SHAPE, keys)
    noise = row_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), SHAPE)
    np.testing.assert_allclose(found, null + weight * (conditional - null) + deviation * noise, atol=0.02)


def test_both_branches_see_the_guided_estimate_of_the_step_before():
    seen = []

    def denoise(x_t, t, previous_x0, mean):
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), previous_x0, ordered=True)
        alpha, sigma = SCHEDULE.alpha(t)[..., None], SCHEDULE.sigma(t)[..., None]
        x0 = jnp.broadcast_to(mean[:, None, None], x_t.shape)
        return from_x0_and_noise("v", x0, (x_t - alpha * x0) / sigma, alpha, sigma)

    run = guided(denoise, [jnp.full(3, 0.0), jnp.full(3, 1.0)], [lambda t: jnp.full_like(t, 5.0)])
    sample(run, SCHEDULE, SamplerConfig(steps=3), SHAPE, jax.random.split(jax.random.key(0), 3))
    jax.effects_barrier()
    assert len(seen) == 3 and all(value.shape == (6, *SHAPE) for value in seen)
    np.testing.assert_array_equal(seen[0], 0)
    for value in seen[1:]:
        np.testing.assert_allclose(value, 5.0, atol=1e-4)


def test_power_cosine_by_hand():
    config = SamplerConfig(guidance=4.0, guidance_schedule="power_cosine", guidance_power=4.0)
    t = jnp.array([[1.0, 0.5, 0.0]])
    expected = [1.0, 1 + 3 * 0.5 * (1 - np.cos(np.pi * 0.5**4)), 4.0]
    np.testing.assert_allclose(scale_over_time(config, config.guidance)(t)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(scale_over_time(SamplerConfig(), 7.5)(t), 7.5)


def test_outside_its_interval_guidance_is_one():
    config = SamplerConfig(guidance_interval=(0.2, 0.8))
    t = jnp.array([[0.1, 0.2, 0.5, 0.8, 0.9]])
    np.testing.assert_array_equal(scale_over_time(config, 7.5)(t)[0], [1, 7.5, 7.5, 7.5, 1])


def test_every_condition_has_its_own_scale():
    """Three Gaussians of one width: what each condition adds to the mean is multiplied by its scale."""
    means, deviation = (0.3, 1.0, -0.4), 0.6

    def denoise(x_t, t, previous_x0, mean):
        return gaussian_v(x_t, t, mean[:, None, None], deviation)

    keys = jax.random.split(jax.random.key(2), 8)
    scales = [lambda t: jnp.full_like(t, 2.0), lambda t: jnp.full_like(t, 3.0)]
    run = guided(denoise, [jnp.full(8, mean) for mean in means], scales)
    found = sample(run, SCHEDULE, SamplerConfig(steps=500), SHAPE, keys)
    noise = row_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), SHAPE)
    mean = means[0] + 2 * (means[1] - means[0]) + 3 * (means[2] - means[1])
    np.testing.assert_allclose(found, mean + deviation * noise, atol=0.02)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaling_brings_back_the_spread_of_the_conditional_prediction(rescale):
    rng = np.random.default_rng(0)
    null, conditional = (jnp.asarray(rng.normal(size=(3, 2, 5)), jnp.float32) for _ in range(2))
    denoise = lambda x_t, t, previous_x0, value: value  # noqa: E731
    x_t, t = jnp.zeros((3, 2, 5)), jnp.full((3, 2), 0.5)
    run = guided(denoise, [null, conditional], [lambda t: jnp.full_like(t, 6.0)], rescale=rescale)
    plain = null + 6 * (conditional - null)
    wanted, had = (np.asarray(value).std((1, 2)) for value in (conditional, plain))
    found = np.asarray(run(x_t, t, x_t)).std((1, 2))
    np.testing.assert_allclose(found, rescale * wanted + (1 - rescale) * had, rtol=1e-5)
