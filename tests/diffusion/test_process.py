"""The schedules, against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.configs import DiffusionConfig, SamplerConfig
from walt.diffusion.process import EDM, FlowMatching, make_tables


def test_linear_schedule_by_hand():
    schedule = make_tables("linear", zero_terminal_snr=False)
    first, second = 1 - 1e-4, 1 - (1e-4 + (0.02 - 1e-4) / 999)
    np.testing.assert_allclose(schedule.alpha_table[:3], [1, np.sqrt(first), np.sqrt(first * second)], rtol=1e-12)
    assert schedule.alpha_table[-1] == pytest.approx(0.00635307, rel=1e-4)  # the well-known sqrt(4.036e-5) of DDPM


def test_zero_terminal_snr_by_hand():
    plain, rescaled = make_tables("linear", False), make_tables("linear", True)
    assert rescaled.has_zero_terminal_snr and not plain.has_zero_terminal_snr
    assert rescaled.alpha_table[1000] == 0 and rescaled.sigma_table[1000] == 1
    assert rescaled.alpha_table[1] == pytest.approx(plain.alpha_table[1], rel=1e-12)
    first, last, middle = plain.alpha_table[[1, 1000, 500]]
    assert rescaled.alpha_table[500] == pytest.approx((middle - last) * first / (first - last), rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("rescale", [False, True])
def test_schedules_preserve_variance_and_fall(name, rescale):
    schedule = make_tables(name, rescale)
    np.testing.assert_allclose(schedule.alpha_table**2 + schedule.sigma_table**2, 1, rtol=1e-12)
    assert np.all(np.diff(schedule.alpha_table) < 0) and schedule.alpha_table[0] == 1
    assert np.all(np.isfinite(schedule.sigma_table))


def test_cosine_schedule_by_hand():
    schedule = make_tables("cosine", False)
    start, half = np.cos(0.008 / 1.008 * np.pi / 2), np.cos((0.5 + 0.008) / 1.008 * np.pi / 2)
    assert schedule.alpha_table[500] == pytest.approx(half / start, rel=1e-9)


def test_look_up_is_exact_at_every_table_time():
    schedule = make_tables("linear", True)
    times = jnp.arange(1001) / 1000
    np.testing.assert_array_equal(schedule.alpha(times), schedule.alpha_table.astype(np.float32))
    np.testing.assert_array_equal(schedule.sigma(times), schedule.sigma_table.astype(np.float32))


def test_unknown_schedule():
    with pytest.raises(ConfigError, match="linear"):
        make_tables("sigmoidal", True)


@pytest.mark.parametrize(
    ("options", "mean", "first"),
    [
        ({}, 0.5, 1e-3),
        ({"times": "logit_normal", "times_mean": 1.0, "times_std": 0.5, "zero_terminal_snr": False}, 0.722, 1e-3),
        ({"schedule": "flow", "prediction": "flow"}, 0.5, 1e-3),
        ({"schedule": "flow", "prediction": "flow", "times": "log_normal"}, 0.5, 1e-3),
        (
            {"schedule": "edm", "prediction": "edm", "times": "log_normal", "times_mean": -1.2, "times_std": 1.2},
            0.3,
            0.0,
        ),
    ],
)
def test_a_video_has_one_time_and_images_have_their_own(options, mean, first):
    keys = jax.random.split(jax.random.key(0), 200)
    config = DiffusionConfig(**options)
    schedule = config.make_schedule((5, 8, 8))
    draw = jax.jit(jax.vmap(lambda key, is_image: config.draw_times(schedule, key, 5, is_image)))
    video, images = draw(keys, jnp.zeros(200, bool)), draw(keys, jnp.ones(200, bool))
    assert np.all(video == video[:, :1])
    assert np.mean([len(set(row.tolist())) for row in images]) > 4.5
    for times in (video, images):
        assert times.min() >= first and times.max() <= 1
        assert abs(times.mean() - mean) < 0.06
    if schedule.discrete:
        np.testing.assert_allclose(images * 1000, np.round(images * 1000), atol=1e-3)


def test_edm_draws_the_noise_it_says():
    config = DiffusionConfig(schedule="edm", prediction="edm", times="log_normal", times_mean=-1.2, times_std=1.2)
    schedule = config.make_schedule((1, 1, 1))
    draw = jax.vmap(lambda key: config.draw_times(schedule, key, 1, jnp.array(False)))
    logs = np.log(schedule.sigma(np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)), np.float64)))
    assert logs.mean() == pytest.approx(-1.2, abs=0.03) and logs.std() == pytest.approx(1.2, abs=0.03)


def test_sigmoid_schedule_by_hand():
    schedule = make_tables("sigmoid", False)
    logistic = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    alpha_bar = (logistic(3) - logistic(-0.6)) / (logistic(3) - logistic(-3))
    assert schedule.alpha_table[400] ** 2 == pytest.approx(alpha_bar, rel=1e-9)


def test_flow_and_its_shift_by_hand():
    schedule = FlowMatching(shift=3.0)
    t = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(schedule.sigma(t), [0, 0.75, 1])
    np.testing.assert_allclose(schedule.alpha(t), [1, 0.25, 0])
    np.testing.assert_allclose(schedule.network_time(t), [0, 750, 1000])
    assert schedule.has_zero_terminal_snr


def test_more_latent_positions_are_noised_more():
    """Four times the positions double the shift (Esser et al. 2024, equation 23)."""
    config = DiffusionConfig(schedule="flow", prediction="flow", flow_shift=1.5, flow_shift_positions=5 * 8 * 8)
    assert config.make_schedule((5, 8, 8)).shift == pytest.approx(1.5)
    assert config.make_schedule((5, 16, 16, 8)).shift == pytest.approx(3.0)


def test_edm_by_hand():
    schedule = EDM()
    np.testing.assert_allclose(schedule.sigma(np.array([0.0, 1.0])), [0.002, 80])
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    assert schedule.sigma(np.array(0.5)) == pytest.approx(middle)
    assert not schedule.has_zero_terminal_snr
    t = jnp.array([schedule.time_of(1.0)])
    np.testing.assert_allclose(schedule.network_time(t), 0, atol=1e-5)
    np.testing.assert_allclose(schedule.input_scale(t), np.sqrt(0.5), rtol=1e-5)


@pytest.mark.parametrize("schedule", [EDM(), FlowMatching(2.0), make_tables("linear", False)], ids=str)
def test_time_of_a_ratio_is_the_inverse(schedule):
    t = np.array([0.002, 0.1, 0.5, 0.9])
    np.testing.assert_allclose(schedule.time_of(schedule.sigma(t) / schedule.alpha(t)), t, rtol=1e-9)
    traced = jnp.asarray(t, jnp.float32)
    np.testing.assert_allclose(schedule.time_of(schedule.sigma(traced) / schedule.alpha(traced)), t, rtol=1e-3)


def test_numpy_and_traced_times_agree():
    t = np.array([0.001, 0.25, 1.0])
    for schedule in (EDM(), FlowMatching(2.0), make_tables("cosine", True)):
        for scale in (schedule.alpha, schedule.sigma):
            np.testing.assert_allclose(jax.jit(scale)(jnp.asarray(t)), scale(t), rtol=1e-5)
            assert scale(t).dtype == np.float64


@pytest.mark.parametrize("guidance", [float("nan"), float("inf"), -1.0])
def test_a_strength_of_guidance_is_a_number_from_0_on(guidance):
    with pytest.raises(ConfigError, match=r"guidance: .* is out of range"):
        SamplerConfig(guidance=guidance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": "log_normal"}, "never draws t = 1"),
        ({"times": "logit_normal", "schedule": "cosine"}, "never draws t = 1"),
        ({"flow_shift": 3.0}, "of the schedule 'flow' alone"),
    ],
)
def test_times_that_training_would_miss_or_ignore_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**options)
