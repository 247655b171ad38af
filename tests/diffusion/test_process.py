"""The schedules, against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.diffusion.process import draw_timesteps, make_schedule


def test_linear_schedule_by_hand():
    schedule = make_schedule("linear", zero_terminal_snr=False)
    first, second = 1 - 1e-4, 1 - (1e-4 + (0.02 - 1e-4) / 999)
    np.testing.assert_allclose(schedule.alpha_table[:3], [1, np.sqrt(first), np.sqrt(first * second)], rtol=1e-12)
    assert schedule.alpha_table[-1] == pytest.approx(0.00635307, rel=1e-4)  # the well-known sqrt(4.036e-5) of DDPM


def test_zero_terminal_snr_by_hand():
    plain, rescaled = make_schedule("linear", False), make_schedule("linear", True)
    assert rescaled.has_zero_terminal_snr and not plain.has_zero_terminal_snr
    assert rescaled.alpha_table[1000] == 0 and rescaled.sigma_table[1000] == 1
    assert rescaled.alpha_table[1] == pytest.approx(plain.alpha_table[1], rel=1e-12)
    first, last, middle = plain.alpha_table[[1, 1000, 500]]
    assert rescaled.alpha_table[500] == pytest.approx((middle - last) * first / (first - last), rel=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("rescale", [False, True])
def test_schedules_preserve_variance_and_fall(name, rescale):
    schedule = make_schedule(name, rescale)
    np.testing.assert_allclose(schedule.alpha_table**2 + schedule.sigma_table**2, 1, rtol=1e-12)
    assert np.all(np.diff(schedule.alpha_table) < 0) and schedule.alpha_table[0] == 1
    assert np.all(np.isfinite(schedule.sigma_table))


def test_cosine_schedule_by_hand():
    schedule = make_schedule("cosine", False)
    start, half = np.cos(0.008 / 1.008 * np.pi / 2), np.cos((0.5 + 0.008) / 1.008 * np.pi / 2)
    assert schedule.alpha_table[500] == pytest.approx(half / start, rel=1e-9)


def test_look_up_is_exact_at_every_table_time():
    schedule = make_schedule("linear", True)
    times = jnp.arange(1001) / 1000
    np.testing.assert_array_equal(schedule.alpha(times), schedule.alpha_table.astype(np.float32))
    np.testing.assert_array_equal(schedule.sigma(times), schedule.sigma_table.astype(np.float32))


def test_unknown_schedule():
    with pytest.raises(ConfigError, match="linear"):
        make_schedule("sigmoidal", True)


def test_a_video_has_one_time_and_images_have_their_own():
    keys = jax.random.split(jax.random.key(0), 200)
    draw = jax.jit(jax.vmap(lambda key, is_image: draw_timesteps(key, 5, is_image)))
    video, images = draw(keys, jnp.zeros(200, bool)), draw(keys, jnp.ones(200, bool))
    assert np.all(video == video[:, :1])
    assert np.mean([len(set(row.tolist())) for row in images]) > 4.5
    for times in (video, images):
        assert times.min() >= 1e-3 and times.max() <= 1
        assert abs(times.mean() - 0.5) < 0.06
