"""Predictions convert into each other exactly, with the signs of the specification."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from walt.config import ConfigError
from walt.diffusion.configs import DiffusionConfig
from walt.diffusion.parameterisation import check_pair, from_x0_and_noise, to_x0_and_noise
from walt.diffusion.process import make_schedule


def test_v_by_hand():
    assert from_x0_and_noise("v", 5.0, 10.0, 0.6, 0.8) == pytest.approx(0.6 * 10 - 0.8 * 5)
    assert from_x0_and_noise("v", 5.0, 10.0, 1.0, 0.0) == 10  # clean data: v is the noise
    assert from_x0_and_noise("v", 5.0, 10.0, 0.0, 1.0) == -5  # pure noise: v is minus the data
    x0, noise = to_x0_and_noise("v", 2.0, 11.0, 0.6, 0.8)
    assert (x0, noise) == (pytest.approx(5.0), pytest.approx(10.0))


number = st.floats(-10, 10)


@settings(max_examples=100, deadline=None)
@given(
    x0=number,
    noise=number,
    index=st.integers(1, 1000),
    names=st.sampled_from(list(itertools.permutations(["v", "noise", "x0"], 2))),
)
def test_round_trips_between_all_pairs(x0, noise, index, names):
    schedule = make_schedule("linear", zero_terminal_snr=False)
    alpha, sigma = schedule.alpha_table[index], schedule.sigma_table[index]
    x_t = alpha * x0 + sigma * noise
    first, second = names
    value = from_x0_and_noise(first, x0, noise, alpha, sigma)
    other = from_x0_and_noise(second, *to_x0_and_noise(first, value, x_t, alpha, sigma), alpha, sigma)
    back = from_x0_and_noise(first, *to_x0_and_noise(second, other, x_t, alpha, sigma), alpha, sigma)
    np.testing.assert_allclose(back, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(to_x0_and_noise(first, value, x_t, alpha, sigma), (x0, noise), rtol=1e-8, atol=1e-8)


def test_terminal_x0_from_v_in_float32():
    schedule = make_schedule("linear", zero_terminal_snr=True)
    alpha, sigma = schedule.alpha(jnp.float32(1.0)), schedule.sigma(jnp.float32(1.0))
    x0, noise = to_x0_and_noise("v", jnp.float32(-3.0), jnp.float32(0.7), alpha, sigma)
    assert float(x0) == 3.0 and float(noise) == pytest.approx(0.7)


def test_singular_pair_is_refused_at_config_time():
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        DiffusionConfig(prediction="noise", zero_terminal_snr=True)
    DiffusionConfig(prediction="noise", zero_terminal_snr=False)
    DiffusionConfig(prediction="x0", zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="velocity"):
        check_pair("velocity", make_schedule("linear", True))
