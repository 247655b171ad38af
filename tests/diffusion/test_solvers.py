"""Every solver on data whose ideal denoiser and exact probability flow are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.diffusion.canvas import Canvas
from walt.diffusion.configs import SamplerConfig
from walt.diffusion.parameterisation import from_x0_and_noise
from walt.diffusion.process import EDM, FlowMatching, make_tables
from walt.diffusion.samplers import row_noise, sample

SHAPE = (1, 3)
MEAN, DEVIATION = np.array([1.0, -0.5, 0.25]), np.array([1.0, 0.3, 0.7])
SCHEDULES = {
    "zero terminal SNR": make_tables("linear", True),
    "cosine": make_tables("cosine", False),
    "flow": FlowMatching(shift=2.0),
    "edm": EDM(),
}


def scales(schedule, t, dtype):
    return (jnp.asarray(scale(t), dtype)[..., None] for scale in (schedule.alpha, schedule.sigma))


def gaussian(schedule, prediction="x0"):
    """E[prediction | x_t] for data N(MEAN, DEVIATION²)."""

    def denoise(x_t, t, previous_x0):
        alpha, sigma = scales(schedule, t, x_t.dtype)
        gain = (x_t - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
        return from_x0_and_noise(prediction, MEAN + alpha * DEVIATION**2 * gain, sigma * gain, alpha, sigma)

    return denoise


def exact_flow(schedule, x, t=1.0):
    """Where the probability flow of the Gaussian takes x at time t: it keeps the distance from the mean in deviations."""
    alpha, sigma = schedule.alpha(np.array(t)), schedule.sigma(np.array(t))
    return MEAN + DEVIATION * (x - alpha * MEAN) / np.sqrt(alpha**2 * DEVIATION**2 + sigma**2)


@functools.cache
def error(solver, name, steps, spacing):
    schedule, keys = SCHEDULES[name], jax.random.split(jax.random.key(1), 64)
    config = SamplerConfig(steps=steps, solver=solver, spacing=spacing)
    with jax.enable_x64(True):
        run = jax.jit(
            lambda keys: sample(gaussian(schedule), schedule, config, SHAPE, keys, prediction="x0", dtype=jnp.float64)
        )
        spread = np.hypot(schedule.alpha(np.array(1.0)), schedule.sigma(np.array(1.0)))
        start = spread * row_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), SHAPE, jnp.float64)
        return np.sqrt(np.mean(np.square(np.asarray(run(keys)) - exact_flow(schedule, np.asarray(start)))))


@pytest.mark.parametrize(
    ("solver", "name", "order"),
    [
        ("ddim", "zero terminal SNR", 1),
        ("ddim", "edm", 1),
        ("flow_euler", "flow", 1),
        ("flow_euler", "cosine", 1),
        ("dpmpp_2m", "zero terminal SNR", 2),
        # Beside pure noise the steps of log(alpha / sigma) do not shrink with their number.
        ("dpmpp_2m", "flow", 1.5),
        ("dpmpp_2m", "edm", 2),
        ("heun", "edm", 2),
        ("flow_heun", "flow", 2),
    ],
)
def test_order_of_convergence(solver, name, order):
    steps = np.array([20, 40, 100, 200])
    errors = [error(solver, name, int(count), "trailing") for count in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.2 < slope < order + 0.2, (slope, errors)


def test_frames_that_begin_later_are_as_exact():
    """From levels of their own on, where a multistep solver has no estimate of the step before; the error against that of a first-order solver."""
    schedule, keys, level = SCHEDULES["flow"], jax.random.split(jax.random.key(1), 64), np.array([0.4, 0.72])
    shape, found = (2, 1, 1, 3), {}
    noise = np.asarray(row_noise(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape))
    known = np.float32(2 * noise[::-1] + 1)
    at = level.reshape(2, 1, 1, 1)
    exact = np.stack(
        [
            exact_flow(schedule, (schedule.alpha(at) * known + schedule.sigma(at) * noise)[:, f], level[f])
            for f in (0, 1)
        ],
        1,
    )
    canvas = Canvas(jnp.asarray(known), jnp.zeros((64, 2, 1, 1, 1)), jnp.tile(jnp.float32(level), (64, 1)))

    def denoise(x_t, t, previous_x0):
        return gaussian(schedule)(x_t, t[..., None, None], previous_x0)

    for solver in ("ddim", "dpmpp_2m"):
        config = SamplerConfig(steps=25, solver=solver)
        run = jax.jit(lambda c, s=config: sample(denoise, schedule, s, shape, keys, prediction="x0", canvas=c))
        found[solver] = np.sqrt(np.mean(np.square(np.asarray(run(canvas)) - exact), axis=(0, 2, 3, 4)))
    assert np.all(found["dpmpp_2m"] < 0.2 * found["ddim"]), found


def test_euler_along_the_flow_is_ddim():
    for name in SCHEDULES:
        assert error("flow_euler", name, 10, "trailing") == pytest.approx(error("ddim", name, 10, "trailing"), rel=1e-9)


def mixture(schedule):
    """E[x0 | x_t] for ¼ N(−2, 0.2²) + ¾ N(1, 0.4²) in every number."""
    weights, means, widths = np.array([0.25, 0.75]), np.array([-2.0, 1.0]), np.array([0.2, 0.4])

    def denoise(x_t, t, previous_x0):
        alpha, sigma = (scale[..., None] for scale in scales(schedule, t, x_t.dtype))
        variance = alpha**2 * widths**2 + sigma**2
        residual = x_t[..., None] - alpha * means
        share = jax.nn.softmax(jnp.log(weights) - 0.5 * jnp.log(variance) - 0.5 * residual**2 / variance, axis=-1)
        return jnp.sum(share * (means + alpha * widths**2 * residual / variance), axis=-1)

    return denoise


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("zero terminal SNR", {"solver": "ddpm", "steps": 250}),
        ("zero terminal SNR", {"solver": "dpmpp_2m", "steps": 100}),
        ("flow", {"solver": "flow_heun", "steps": 60}),
        ("edm", {"solver": "heun", "steps": 60}),
        ("edm", {"solver": "heun", "steps": 100, "churn": 30.0, "churn_noise": 1.0}),
        ("cosine", {"solver": "ddim", "steps": 200, "eta": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_samples_of_a_mixture_have_its_shares_means_and_widths(name, options):
    schedule, keys = SCHEDULES[name], jax.random.split(jax.random.key(0), 5_000)
    config = SamplerConfig(**options)
    run = jax.jit(lambda keys: sample(mixture(schedule), schedule, config, SHAPE, keys, prediction="x0"))
    found = np.asarray(run(keys), np.float64).ravel()
    left, right = found[found < -0.8], found[found >= -0.8]
    assert len(left) / len(found) == pytest.approx(0.25, abs=0.015)
    assert left.mean() == pytest.approx(-2, abs=0.015) and right.mean() == pytest.approx(1, abs=0.02)
    assert left.std() == pytest.approx(0.2, abs=0.015) and right.std() == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(("solver", "evaluations"), [("ddim", 7), ("dpmpp_2m", 7), ("heun", 13), ("flow_heun", 13)])
def test_evaluations_are_as_many_as_documented(solver, evaluations):
    calls = []

    def denoise(x_t, t, previous_x0):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0, 0], ordered=True)
        return gaussian(SCHEDULES["edm"])(x_t, t, previous_x0)

    keys = jax.random.split(jax.random.key(0), 2)
    sample(denoise, SCHEDULES["edm"], SamplerConfig(steps=7, solver=solver), SHAPE, keys, prediction="x0")
    jax.effects_barrier()
    assert len(calls) == evaluations and calls == sorted(calls, reverse=True)
