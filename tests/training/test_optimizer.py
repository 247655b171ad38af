import jax
import jax.numpy as jnp
import linear
import numpy as np
import optax
import pytest

from walt.config import ConfigError, from_config_dict, to_config_dict
from walt.parallel.mesh import make_mesh
from walt.training.config import OptimizerConfig, TrainingConfig
from walt.training.optimizer import decayed, make_optimizer, make_schedule
from walt.training.state import abstract_state, create_state


def test_schedule_warms_up_and_falls_along_a_cosine():
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4, final_fraction=0.1), num_steps=24)
    assert [rate(n) for n in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rate(14) == pytest.approx(0.55)
    assert rate(24) == pytest.approx(0.1)
    warm, falling = optax.linear_schedule(0.2, 1.0, 4), optax.cosine_decay_schedule(1.0, 20, alpha=0.1)
    theirs = optax.join_schedules([warm, falling], [4])
    assert [rate(n) for n in range(30)] == pytest.approx([float(theirs(n)) for n in range(30)])


def test_constant_schedule_and_no_warmup():
    rate = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=0, schedule="constant"), num_steps=10)
    assert [rate(n) for n in (0, 5, 100)] == [2.0, 2.0, 2.0]


def test_adamw_equals_optax():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.3, b1=0.8, b2=0.95)
    params = {"layer": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    grads = jax.tree.map(lambda leaf: 0.3 * leaf, params)
    ours, theirs = make_optimizer(config), optax.adamw(0.1, 0.8, 0.95, weight_decay=0.3, mask=decayed(config, params))
    a, b = ours.update(grads, ours.init(params), params)[0], theirs.update(grads, theirs.init(params), params)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(-0.1 * x, y, rtol=1e-6), a, b)


def test_weight_decay_applies_to_kernels_only():
    params = {"blocks": {"kernel": 0, "bias": 0, "scale": 0}, "kernel_norm": {"scale": 0}}
    chosen = decayed(OptimizerConfig(), params)
    assert chosen == {"blocks": {"kernel": True, "bias": False, "scale": False}, "kernel_norm": {"scale": False}}


def test_weight_decay_on_nothing_is_an_error():
    config = linear.make_config(optimizer={"decay_pattern": "weights"})
    with pytest.raises(ConfigError, match="decay_pattern"):
        create_state(linear.LinearTask(), config, make_mesh(config.mesh))


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_adafactor_learns(tmp_path, b1):
    optimizer = {"name": "adafactor", "b1": b1, "weight_decay": 0.0}
    config = linear.make_config(num_steps=100, optimizer=optimizer)
    state = linear.run(tmp_path, config)
    loss = linear.LinearTask().loss(state.params, next(linear.LinearLoader().batches(1000)), jax.random.key(0))
    assert loss < 1.0


def test_factored_moments_of_a_sharded_parameter_are_whole():
    class Wide(linear.LinearTask):
        def init(self, key):
            return {"model": {"kernel": jnp.zeros((256, 512))}}, {}

    config = linear.make_config(mesh=type(linear.make_config().mesh)(fsdp=8, data=1), optimizer={"name": "adafactor"})
    state = abstract_state(Wide(), config, make_mesh(config.mesh))
    specs = {leaf.shape: leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.opt)}
    assert specs[(256,)] and specs[(512,)]
    assert not state.params["model"]["kernel"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"accumulation": 0}, "accumulation must be at least 1"),
        ({"clip_norm": 0.0}, "clip_norm must be positive or None"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"num_steps": 2}, "the warm-up must be shorter"),
        ({"optimizer": {"learning_rate": 0.0}}, "learning_rate must be positive"),
        ({"optimizer": {"name": "adam"}}, "weight_decay must be 0 for adam"),
    ],
)
def test_bad_settings_name_the_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        linear.make_config(**changes)


def test_config_round_trip():
    config = linear.make_config()
    assert from_config_dict(TrainingConfig, to_config_dict(config)) == config
    assert from_config_dict(TrainingConfig, {}) == TrainingConfig()
