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
from walt.diffusion.process import EDM, FlowMatching, make_tables


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
    names=st.sampled_from(list(itertools.permutations(["v", "noise", "x0", "flow"], 2))),
)
def test_round_trips_between_all_pairs(x0, noise, index, names):
    schedule = make_tables("linear", zero_terminal_snr=False)
    alpha, sigma = schedule.alpha_table[index], schedule.sigma_table[index]
    x_t = alpha * x0 + sigma * noise
    first, second = names
    value = from_x0_and_noise(first, x0, noise, alpha, sigma)
    other = from_x0_and_noise(second, *to_x0_and_noise(first, value, x_t, alpha, sigma), alpha, sigma)
    back = from_x0_and_noise(first, *to_x0_and_noise(second, other, x_t, alpha, sigma), alpha, sigma)
    np.testing.assert_allclose(back, value, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(to_x0_and_noise(first, value, x_t, alpha, sigma), (x0, noise), rtol=1e-8, atol=1e-8)


def test_terminal_x0_from_v_in_float32():
    schedule = make_tables("linear", zero_terminal_snr=True)
    alpha, sigma = schedule.alpha(jnp.float32(1.0)), schedule.sigma(jnp.float32(1.0))
    x0, noise = to_x0_and_noise("v", jnp.float32(-3.0), jnp.float32(0.7), alpha, sigma)
    assert float(x0) == 3.0 and float(noise) == pytest.approx(0.7)


def test_singular_pair_is_refused_at_config_time():
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        DiffusionConfig(prediction="noise", zero_terminal_snr=True)
    DiffusionConfig(prediction="noise", zero_terminal_snr=False)
    DiffusionConfig(prediction="x0", zero_terminal_snr=True)
    with pytest.raises(ConfigError, match="velocity"):
        check_pair("velocity", make_tables("linear", True))
    with pytest.raises(ConfigError, match="'v' needs a schedule with"):
        DiffusionConfig(prediction="v", schedule="flow")
    with pytest.raises(ConfigError, match="'edm' needs schedule='edm'"):
        DiffusionConfig(prediction="edm")
    with pytest.raises(ConfigError, match="'noise' cannot be used where t = 1 is pure noise"):
        DiffusionConfig(prediction="noise", schedule="flow")


@settings(max_examples=50, deadline=None)
@given(
    x0=number,
    noise=number,
    t=st.floats(0.05, 0.95),
    schedule=st.sampled_from([EDM(), FlowMatching(2.0)]),
    names=st.sampled_from(list(itertools.permutations(["noise", "x0", "flow", "edm"], 2))),
)
def test_round_trips_without_preserved_variance(x0, noise, t, schedule, names):
    if "edm" in names and not isinstance(schedule, EDM):
        return
    alpha, sigma = schedule.alpha(np.array(t)), schedule.sigma(np.array(t))
    x_t = alpha * x0 + sigma * noise
    for name in names:
        found = to_x0_and_noise(name, from_x0_and_noise(name, x0, noise, alpha, sigma), x_t, alpha, sigma)
        np.testing.assert_allclose(np.asarray(found, np.float64), (x0, noise), rtol=1e-4, atol=1e-3)


def test_edm_is_minus_v_of_the_process_scaled_to_unit_variance():
    """With sigma_data = 1, x / sqrt(1 + sigma²) is variance-preserving, and Karras et al.'s F is its −v."""
    x0, noise, sigma = 0.7, -1.3, np.linspace(0.01, 50, 9)
    size = np.sqrt(1 + sigma**2)
    v = from_x0_and_noise("v", x0, noise, 1 / size, sigma / size)
    np.testing.assert_allclose(from_x0_and_noise("edm", x0, noise, 1.0, sigma), -v, rtol=1e-5)


def test_flow_by_hand():
    assert from_x0_and_noise("flow", 5.0, 10.0, 0.25, 0.75) == 5
    x0, noise = to_x0_and_noise("flow", 5.0, 0.25 * 5 + 0.75 * 10, 0.25, 0.75)
    assert (x0, noise) == (5.0, 10.0)
