import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from walt.transformer.conditioning import Conditioning, LayerModulation, TextConditioning, sinusoidal_features


def test_sinusoidal_features_by_hand():
    features = np.asarray(sinusoidal_features(jnp.array([0.0, 250.0])))
    np.testing.assert_array_equal(features[0], [1.0] * 128 + [0.0] * 128)
    frequency = 10000.0 ** (-3 / 128)
    np.testing.assert_allclose(features[1, [3, 131]], [np.cos(250 * frequency), np.sin(250 * frequency)], atol=1e-4)


def test_timesteps_stay_apart_whatever_the_dtype(small_config, randomised):
    conditioning = randomised(lambda rngs: Conditioning(small_config(dtype="bfloat16"), rngs))
    out = conditioning(jnp.array([[998.0, 999.0, 1000.0]]))[0]
    assert out.dtype == jnp.float32 and np.abs(np.diff(out[0], axis=0)).max(-1).min() > 1e-5


def test_lora_adds_a_low_rank_map_of_the_condition(small_config, randomised):
    modulation = randomised(lambda rngs: LayerModulation(small_config(lora_rank=3), rngs))
    random = np.random.default_rng(1)
    condition, shared = (random.normal(size=(2, 3, size)).astype(np.float32) for size in (16, 96))
    out = jnp.concatenate(modulation(condition, shared), axis=-1)[:, :, 0, 0]
    low_rank = np.asarray(modulation.down.kernel[...]) @ np.asarray(modulation.up.kernel[...])
    np.testing.assert_allclose(out, shared + condition @ low_rank, atol=1e-5)


@pytest.mark.parametrize("adaln", ["shared", "lora", "separate"])
def test_every_kind_starts_with_closed_gates(adaln, small_config):
    config = small_config(adaln=adaln)
    conditioning, modulation = Conditioning(config, nnx.Rngs(0)), LayerModulation(config, nnx.Rngs(0))
    (condition,) = conditioning(jnp.full((1, 3), 500.0))
    parts = modulation(condition, conditioning.shared_modulation(condition))
    assert len(parts) == 6 and all(part.shape == (1, 3, 1, 1, 16) and not part.any() for part in parts)


def test_classes_and_no_class(small_config, randomised):
    conditioning = randomised(lambda rngs: Conditioning(small_config(num_classes=4), rngs))
    time, label = jnp.zeros((1, 3)), jnp.array([[0, 1, 1]])
    out = conditioning(time, label)[1][0]
    assert np.abs(out[0] - out[1]).max() > 1e-4
    np.testing.assert_array_equal(out[1], out[2])
    dropped = conditioning(time, label, jnp.array([[False, True, False]]))[1][0]
    np.testing.assert_array_equal(dropped[1], conditioning(time)[1][0, 1])
    np.testing.assert_array_equal(dropped[0], out[0])


def test_text_is_picked_per_frame_and_dropped_to_the_null_text(small_config, randomised):
    text = randomised(lambda rngs: TextConditioning(small_config(), rngs))
    embeddings = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 4, 6)), jnp.float32)
    mask = jnp.ones((1, 2, 4), bool)
    index = jnp.array([[1, 0, 1]])
    out, out_mask = text(embeddings, mask, None, index)
    assert out.shape == (1, 3, 4, 16) and out_mask.all()
    np.testing.assert_array_equal(out[0, 0], out[0, 2])
    out, out_mask = text(embeddings, mask, jnp.array([[False, True]]), index)
    np.testing.assert_array_equal(out_mask[0], [[True, False, False, False], [True] * 4, [True, False, False, False]])
    other, _ = text(embeddings + 1, mask, jnp.array([[False, True]]), index)
    np.testing.assert_array_equal(out[0, 0], other[0, 0])
    assert np.abs(out[0, 1] - other[0, 1]).max() > 1e-3


def test_one_caption_for_the_row_is_not_repeated(small_config, randomised):
    text = randomised(lambda rngs: TextConditioning(small_config(), rngs))
    out, mask = text(jnp.ones((2, 1, 4, 6)), jnp.ones((2, 1, 4), bool), None, None)
    assert out.shape == (2, 1, 4, 16) and mask.shape == (2, 1, 4)


def test_a_scalar_that_is_not_told_is_a_learned_vector(small_config, randomised):
    conditioning = randomised(lambda rngs: Conditioning(small_config(scalars=("fps", "motion")), rngs))
    time = jnp.zeros((1, 3))
    _, fps, motion = conditioning(time, scalars={"fps": jnp.array([[8.0, 24.0, jnp.nan]])})
    np.testing.assert_array_equal(fps[0, 2], conditioning.scalars["fps"].untold[...])
    np.testing.assert_array_equal(motion[0], np.broadcast_to(conditioning.scalars["motion"].untold[...], (3, 16)))
    assert np.abs(fps[0, 0] - fps[0, 1]).max() > 1e-3
    slope = jax.grad(lambda value: conditioning(time, scalars={"fps": value})[1].sum())(
        jnp.array([[8.0, 24.0, jnp.nan]])
    )
    assert np.all(np.isfinite(slope))
