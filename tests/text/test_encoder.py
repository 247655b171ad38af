import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt.config import ConfigError
from walt.text.encoder import TextEncoder, TextEncoderConfig, relative_buckets
from walt.training.module import Functional, count_parameters

SMALL = TextEncoderConfig(vocab_size=50, width=16, depth=2, heads=2, head_width=8, mlp_width=24)


@pytest.fixture(scope="module")
def encoder():
    model = Functional(lambda rngs: TextEncoder(SMALL, rngs))
    return model.bind(*model.init(jax.random.key(0)))


def test_padding_changes_nothing(encoder):
    ids = jnp.array([[5, 6, 7, 1]])
    short = encoder(ids, jnp.ones((1, 4), bool))
    padded = jnp.pad(ids, ((0, 0), (0, 3)), constant_values=9)
    long = encoder(padded, jnp.arange(7)[None] < 4)
    np.testing.assert_allclose(long[:, :4], short, atol=1e-5)


def test_sees_order_and_both_directions(encoder):
    ids = jnp.array([[5, 6, 7, 8]])
    full = jnp.ones((1, 4), bool)
    first, last = ids.at[0, 0].set(9), ids.at[0, 3].set(9)
    assert np.abs(encoder(first, full)[0, 3] - encoder(ids, full)[0, 3]).max() > 1e-4
    assert np.abs(encoder(last, full)[0, 0] - encoder(ids, full)[0, 0]).max() > 1e-4
    assert np.abs(encoder(ids[:, ::-1], full)[0, ::-1] - encoder(ids, full)[0]).max() > 1e-4


def test_relative_buckets_by_hand():
    buckets = relative_buckets(200, 32, 128)
    assert buckets[10, 10] == 0 and buckets[10, 9] == 1 and buckets[10, 11] == 17
    assert buckets[10, 3] == 7 and buckets[10, 2] == 8 and buckets[180, 20] == 15 and buckets[20, 180] == 31
    assert buckets.min() == 0 and buckets.max() == 31


def test_t5_xl_has_its_published_size():
    config = TextEncoderConfig(32128, 2048, 24, 32, 64, 5120)
    model = Functional(lambda rngs: TextEncoder(config, rngs))
    assert count_parameters(model.abstract_params) == pytest.approx(1.2237e9, rel=0.01)


def test_bad_config():
    with pytest.raises(ConfigError, match="relative_buckets"):
        TextEncoderConfig(relative_buckets=5)


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.05), ("float64", 1e-5)])
def test_other_dtypes_stay_close_to_float32(dtype, tolerance):
    exact_model, other = (
        Functional(lambda rngs, d=d: TextEncoder(dataclasses.replace(SMALL, dtype=d), rngs)) for d in ("float32", dtype)
    )
    params, extra = exact_model.init(jax.random.key(0))
    ids, mask = jnp.array([[5, 6, 7, 1]]), jnp.ones((1, 4), bool)
    exact = np.asarray(exact_model.bind(params, extra)(ids, mask))
    with jax.enable_x64(dtype == "float64"):
        out = np.asarray(other.bind(params, extra)(ids, mask))
    assert out.dtype == ("float64" if dtype == "float64" else "float32")
    assert np.linalg.norm(out - exact) < tolerance * np.linalg.norm(exact)
