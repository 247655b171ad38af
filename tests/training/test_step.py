import functools

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest

from walt.parallel.mesh import make_mesh, put_batch
from walt.training.optimizer import make_schedule
from walt.training.state import create_state
from walt.training.step import make_train_step

TWO = ("generator", "discriminator")


def one_mesh():
    return make_mesh(linear.make_config().mesh, jax.devices()[:1])


@functools.cache  # tasks and configs are frozen: equal runs are run once
def take_steps(task, config, steps=1, mesh=None):
    mesh = mesh or one_mesh()
    run, batches = make_train_step(task, config, mesh), linear.LinearLoader().batches()
    learning_rate = make_schedule(config.optimizer, config.num_steps)
    state, history = create_state(task, config, mesh), []
    with jax.set_mesh(mesh):
        for _ in range(steps):
            before = jax.tree.map(np.asarray, (state.params, state.opt, state.ema, state.extra))
            state, metrics = run(state, put_batch(next(batches), mesh), learning_rate(int(state.step)))
            after = jax.tree.map(np.asarray, (state.params, state.opt, state.ema, state.extra))
            history.append((before, after, {name: float(value) for name, value in metrics.items()}))
    return state, history


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_equals_the_full_batch(parts):
    task = linear.LinearTask(TWO)
    _, full = take_steps(task, linear.make_config(), steps=3)
    _, divided = take_steps(task, linear.make_config(accumulation=parts), steps=3)
    for (_, (params, *_, extra), metrics), (_, (params_2, *_, extra_2), metrics_2) in zip(full, divided):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, params_2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), extra, extra_2)
        assert metrics == pytest.approx(metrics_2, rel=1e-4)


def test_what_extra_keeps_is_kept_to_the_bit_under_accumulation():
    statistics = jnp.array([-0.0, 0.1, -2.3456789, 1e-30, 3e20, 7.0], jnp.float32)

    class Frozen(linear.LinearTask):
        def init(self, key):
            params, extra = super().init(key)
            return params, extra | {"statistics": statistics}

        def gradients(self, state, batch, key):
            grads, extra, metrics = super().gradients(state, batch, key)
            return grads, extra | {"statistics": state.extra["statistics"]}, metrics

    mesh, task, config = one_mesh(), Frozen(), linear.make_config(accumulation=3)
    run, batches = make_train_step(task, config, mesh), linear.LinearLoader(batch_size=15).batches()
    state = create_state(task, config, mesh)
    for _ in range(5):
        state, _ = run(state, put_batch(next(batches), mesh), 1e-3)
    assert np.asarray(state.extra["statistics"]).tobytes() == np.asarray(statistics).tobytes()
    assert int(state.extra["count"]) == 5 and state.extra["mean_loss"] > 0


def test_noise_does_not_depend_on_the_number_of_devices():
    task, config = linear.LinearTask(), linear.make_config()
    _, one = take_steps(task, config, steps=2)
    _, eight = take_steps(task, config, steps=2, mesh=make_mesh(config.mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one[-1][1], eight[-1][1])


def test_every_step_draws_other_noise():
    mesh, task, config = one_mesh(), linear.LinearTask(noise=1.0), linear.make_config()
    run, batch = make_train_step(task, config, mesh), put_batch(next(linear.LinearLoader().batches()), mesh)
    state, first = run(create_state(task, config, mesh), batch, 1e-9)
    state, second = run(state, batch, 1e-9)
    assert abs(float(first["loss"]) - float(second["loss"])) > 1e-3


def test_moving_average_follows_its_formula():
    _, history = take_steps(linear.LinearTask(), linear.make_config(ema_decay=0.5), steps=15)
    for n, (before, after, _) in enumerate(history):
        decay = min(0.5, (1 + n) / (10 + n))
        for ema, new, found in zip(*(jax.tree.leaves(tree["model"]) for tree in (before[2], after[0], after[2]))):
            np.testing.assert_allclose(found, decay * ema + (1 - decay) * new, rtol=1e-6, atol=1e-7)


def test_groups_with_a_moving_average():
    mesh = one_mesh()
    task = linear.LinearTask(TWO)
    assert set(create_state(task, linear.make_config(), mesh).ema) == {"generator"}
    assert set(create_state(task, linear.make_config(ema_decay=None), mesh).ema) == set()
    state = create_state(task, linear.make_config(ema_excluded=()), mesh)
    assert set(state.ema) == set(TWO)
    without = create_state(task, linear.make_config(), mesh)
    assert without.averaged_params()["discriminator"] is without.params["discriminator"]


def test_clipping_is_per_group():
    # One Adam step with b1 = 0 is sign(g); so look at the second moment, which holds (1-b2) g² of the clipped gradient.
    config = linear.make_config(clip_norm=0.01, optimizer={"b1": 0.0, "b2": 0.5})
    _, [(_, after, metrics)] = take_steps(linear.LinearTask(TWO), config)
    assert metrics["l2_grads/generator"] > 0.1  # the logged norm is that before clipping
    for group in TWO:
        second_moment = after[1][group][0].nu
        assert np.sqrt(2 * sum(leaf.sum() for leaf in jax.tree.leaves(second_moment))) == pytest.approx(0.01, rel=1e-4)


def test_small_gradients_are_not_scaled_up():
    _, [(_, clipped, _)] = take_steps(linear.LinearTask(), linear.make_config(clip_norm=1e6))
    _, [(_, free, _)] = take_steps(linear.LinearTask(), linear.make_config(clip_norm=None))
    jax.tree.map(np.testing.assert_array_equal, clipped, free)


def test_non_finite_gradients_of_one_group_skip_all_groups():
    state, history = take_steps(linear.LinearTask(TWO, bad_gradients_at=(1,)), linear.make_config(), steps=3)
    before, after, metrics = history[1]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert metrics["skipped"] == 1 and metrics["l2_updates"] == 0
    assert int(state.step) == 3  # the batch is consumed all the same
    before, after, metrics = history[2]
    assert metrics["skipped"] == 0
    for group in TWO:
        assert not np.array_equal(before[0][group]["linear"]["kernel"], after[0][group]["linear"]["kernel"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_a_non_finite_loss_skips_the_update_too():
    _, history = take_steps(linear.LinearTask(bad_loss_at=0), linear.make_config())
    jax.tree.map(np.testing.assert_array_equal, history[0][0], history[0][1])


def test_logged_norms_and_rate_are_those_used():
    config = linear.make_config()
    _, history = take_steps(linear.LinearTask(TWO), config, steps=4)
    schedule = make_schedule(config.optimizer, config.num_steps)
    for n, (before, after, metrics) in enumerate(history):
        assert metrics["learning_rate"] == pytest.approx(schedule(n))
        assert metrics["l2_params"] == pytest.approx(norm(after[0]), rel=1e-5)
        moved = jax.tree.map(lambda old, new: new - old, before[0], after[0])
        assert metrics["l2_updates"] == pytest.approx(norm(moved), rel=1e-4)
        total = np.hypot(metrics["l2_grads/generator"], metrics["l2_grads/discriminator"])
        assert metrics["l2_grads"] == pytest.approx(total, rel=1e-5)


def test_the_given_state_is_donated():
    mesh, task, config = one_mesh(), linear.LinearTask(), linear.make_config()
    state = create_state(task, config, mesh)
    make_train_step(task, config, mesh)(state, put_batch(next(linear.LinearLoader().batches()), mesh), 1e-3)
    assert state.params["model"]["linear"]["kernel"].is_deleted()


def test_fsdp_shards_parameters_moments_and_averages_from_the_start():
    task, config = linear.LinearTask(), linear.make_config(mesh=type(linear.make_config().mesh)(data=2, fsdp=4))
    state, [(_, sharded, _)] = take_steps(task, config, mesh=make_mesh(config.mesh))
    for tree in (state.params["model"], state.ema["model"], state.opt["model"][0].mu, state.opt["model"][0].nu):
        kernel = tree["linear"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (linear.FEATURES, linear.OUTPUTS // 4)
    _, [(_, whole, _)] = take_steps(task, linear.make_config())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), sharded, whole)


def test_metrics_of_the_task_are_kept():
    _, [(_, _, metrics)] = take_steps(linear.LinearTask(), linear.make_config())
    assert {"loss", "learning_rate", "l2_grads", "l2_params", "l2_updates", "skipped"} == set(metrics)
    assert jnp.isfinite(metrics["loss"])


def test_one_compiled_step_serves_any_schedule():
    mesh, task = one_mesh(), linear.LinearTask()

    def program(config):
        batch = put_batch(next(linear.LinearLoader().batches()), mesh)
        state = create_state(task, config, mesh)
        return make_train_step(task, config, mesh).lower(state, batch, config.optimizer.learning_rate).as_text()

    short = program(linear.make_config(num_steps=10))
    long = program(linear.make_config(num_steps=1000, optimizer={"learning_rate": 0.3, "warmup_steps": 50}))
    assert short == long
    assert short != program(linear.make_config(clip_norm=0.5))
