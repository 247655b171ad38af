import dataclasses
import json
import os
import signal
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest
import trainings

from walt.config import ConfigError, to_config_dict
from walt.parallel.config import MeshConfig
from walt.training.budget import steps_for_budget
from walt.training.checkpoint import restore_parts
from walt.training.config import AnomalyConfig
from walt.training.folder import latest_step
from walt.training.heldout import HeldOut
from walt.training.loop import Initial, Interrupted, NonFiniteError
from walt.training.metrics import read_metrics
from walt.training.task import Share


def assert_equal(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def files(workdir):
    return {path: path.read_bytes() for path in Path(workdir).rglob("*") if path.is_file()}


def run_until(workdir, config, step, **arguments):
    """Train, but the power fails before the batch of `step` comes."""

    class PowerCut(Exception):
        pass

    class Loader(linear.LinearLoader):
        def batches(self, start_step=0):
            for index, batch in enumerate(super().batches(start_step), start_step):
                if index == step:
                    raise PowerCut
                yield batch

    with pytest.raises(PowerCut):
        linear.run(workdir, config, loader=Loader(), **arguments)


class Counting:
    """An evaluator that remembers when it was asked."""

    name, takes_long = "counting", False

    def __init__(self, every=5, fails_at=None):
        self.every, self.fails_at, self.asked = every, fails_at, []

    def __call__(self, state, step):
        if step == self.fails_at:
            raise RuntimeError("the evaluator broke")
        self.asked.append((int(state.step), step))
        return {"bias": float(state.params["model"]["linear"]["bias"].sum())}


def test_learns_and_logs(tmp_path):
    state = linear.run(tmp_path, linear.make_config(num_steps=200, log_every=50))
    records = read_metrics(tmp_path)
    assert int(state.step) == 200 and [record["step"] for record in records] == [50, 100, 150, 200]
    assert records[-1]["loss"] < 0.2 * records[0]["loss"]
    last = records[-1]
    assert last["examples_per_second"] == pytest.approx(16 * last["steps_per_second"])
    assert last["tokens_per_second"] == pytest.approx(last["examples_per_second"])
    assert last["model_flops_per_second"] == pytest.approx(last["examples_per_second"] * 6 * 8 * 16)
    assert last["eta_seconds"] == 0 and records[0]["eta_seconds"] > 0
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_is_exact(tmp_path):
    config = linear.make_config(num_steps=33, checkpoint_every=7)
    straight = linear.run(tmp_path / "straight", config, evaluators=[Counting()])
    for step in (9, 23):  # neither on the log nor on the checkpoint grid
        run_until(tmp_path / "resumed", config, step, evaluators=[Counting()])
    loader = linear.LinearLoader()
    resumed = linear.run(tmp_path / "resumed", config, loader=loader, evaluators=[Counting()])
    assert loader.asked == list(range(21, 33))
    assert_equal(straight, resumed)
    expected, found = (trainings.without_times(read_metrics(tmp_path / name)) for name in ("straight", "resumed"))
    assert expected == found
    assert [record["step"] for record in found if "loss" in record] == [4, 8, 12, 16, 20, 24, 28, 32, 33]


def test_seconds_go_on_after_resuming(tmp_path):
    config = linear.make_config()
    run_until(tmp_path, config, 15)
    linear.run(tmp_path, config)
    seconds = [record["seconds"] for record in read_metrics(tmp_path)]
    assert seconds == sorted(seconds)


def test_a_finished_run_is_a_no_op(tmp_path, capsys):
    config, calls = linear.make_config(), []

    def calibrate(state):
        calls.append(int(state.step))
        return dataclasses.replace(state, extra={**state.extra, "mean_loss": state.extra["mean_loss"] + 100})

    first = linear.run(tmp_path, config, on_finish=calibrate)
    before = files(tmp_path)
    loader = linear.LinearLoader()
    second = linear.run(tmp_path, config, loader=loader, on_finish=calibrate, evaluators=())
    assert calls == [20] and loader.asked == [] and files(tmp_path) == before
    assert_equal(first, second)
    assert restore_parts(tmp_path)[2]["mean_loss"] > 100
    printed = capsys.readouterr().out
    assert f"trained {tmp_path} to step 20, which is saved" in printed
    assert "has finished its 20 steps; a larger" in printed


def test_finishing_at_a_step_that_is_saved_already(tmp_path):
    run_until(tmp_path, linear.make_config(), 12)
    config = linear.make_config(num_steps=10)
    done = linear.run(
        tmp_path, config, on_finish=lambda state: dataclasses.replace(state, extra={"mean_loss": np.float32(7.0)})
    )
    assert int(done.step) == 10
    assert restore_parts(tmp_path)[2]["mean_loss"] == 7.0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0", "10"]


def test_a_finished_run_can_be_made_longer(tmp_path):
    linear.run(tmp_path, linear.make_config(num_steps=10))
    assert int(linear.run(tmp_path, linear.make_config(num_steps=15)).step) == 15


def test_a_run_cannot_be_made_shorter(tmp_path):
    linear.run(tmp_path, linear.make_config(num_steps=20))
    with pytest.raises(ConfigError, match="is at step 20 already, but num_steps is 15"):
        linear.run(tmp_path, linear.make_config(num_steps=15))


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = linear.make_config(num_steps=40, checkpoint_every=10)
    with pytest.raises(NonFiniteError, match="loss is nan at step 26"):
        linear.run(tmp_path / "bad", config, task=linear.LinearTask(bad_loss_at=25))
    assert latest_step(tmp_path / "bad") == 20
    params = restore_parts(tmp_path / "bad")[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    last = read_metrics(tmp_path / "bad")[-1]
    assert last["step"] == 26 and last["loss"] is None
    with pytest.raises(NonFiniteError, match="at step 26"):  # and again: resuming is exact
        linear.run(tmp_path / "bad", config, task=linear.LinearTask(bad_loss_at=25))


@pytest.mark.parametrize("step", [9, 10, 19])
def test_a_non_finite_loss_is_never_saved(tmp_path, step):
    # At the very step before a checkpoint, after it, and before the last: metrics are read late, but not too late.
    with pytest.raises(NonFiniteError, match=f"at step {step + 1}"):
        linear.run(tmp_path, task=linear.LinearTask(bad_loss_at=step))
    assert latest_step(tmp_path) == (step // 10) * 10


def test_a_few_skipped_updates_are_survived_but_not_many(tmp_path):
    state = linear.run(tmp_path / "few", task=linear.LinearTask(bad_gradients_at=(3, 4, 8)))
    assert int(state.step) == 20
    assert [record["skipped"] for record in read_metrics(tmp_path / "few")[:3]] == [0.25, 0.25, 0.25]
    config = linear.make_config(max_skipped_steps=2)
    with pytest.raises(NonFiniteError, match="not finite at step 8, and the updates of the 2 steps before"):
        linear.run(tmp_path / "many", config, task=linear.LinearTask(bad_gradients_at=(5, 6, 7, 8)))


def test_evaluators_run_when_due_and_at_the_end(tmp_path):
    evaluator = Counting(every=6)
    linear.run(tmp_path, linear.make_config(num_steps=20), evaluators=[evaluator])
    assert evaluator.asked == [(6, 6), (12, 12), (18, 18), (20, 20)]
    logged = [record["step"] for record in read_metrics(tmp_path) if "counting/bias" in record]
    assert logged == [6, 12, 18, 20]


def test_an_evaluation_that_failed_is_made_up_for(tmp_path):
    with pytest.raises(RuntimeError, match="the evaluator broke"):
        linear.run(tmp_path, evaluators=[Counting(every=10, fails_at=10)])
    assert latest_step(tmp_path) == 10  # saved before it was looked at
    again = Counting(every=10)
    linear.run(tmp_path, evaluators=[again])
    assert again.asked == [(10, 10), (20, 20)]


@pytest.mark.parametrize("found", [{"videos": np.zeros((1, 2, 8, 8, 3), np.uint8)}, {}])
def test_an_evaluation_that_leaves_no_figures_is_not_repeated(tmp_path, found):
    class Watching(Counting):
        def __call__(self, state, step):
            super().__call__(state, step)
            return found

    evaluator = Watching(every=10)
    linear.run(tmp_path, evaluators=[evaluator])
    before = files(tmp_path)
    for _ in range(2):
        linear.run(tmp_path, evaluators=[evaluator])
    assert evaluator.asked == [(10, 10), (20, 20)] and files(tmp_path) == before


def test_held_out_loss_uses_averaged_parameters(tmp_path):
    task = linear.LinearTask(noise=0.0)
    heldout = HeldOut(task, linear.LinearLoader(), every=10, num_batches=2)
    state = linear.run(tmp_path, task=task, evaluators=[heldout])
    batches = linear.LinearLoader().batches()
    expected = np.mean([task.loss(state.ema, next(batches), jax.random.key(0)) for _ in range(2)])
    assert read_metrics(tmp_path)[-1]["heldout/loss"] == pytest.approx(expected, rel=1e-5)


class PartOfABatch(linear.LinearTask):
    def eval_step(self, params, extra, batch, key):
        first, inside = batch["x"][:, 0], batch["x"][:, 0] > 0
        nothing = Share(jnp.zeros(()), jnp.zeros(()))
        return {"all": first.mean(), "part": Share(jnp.sum(first * inside), inside.sum()), "none": nothing}


def test_a_share_of_a_batch_weighs_by_its_size(tmp_path):
    loader = linear.LinearLoader()
    linear.run(tmp_path, evaluators=[HeldOut(PartOfABatch(), loader, every=20, num_batches=2)])
    found, (one, other) = read_metrics(tmp_path)[-1], islice(loader.batches(), 2)
    x = np.concatenate([one["x"][:, 0], other["x"][:, 0]])
    assert np.sum(one["x"][:, 0] > 0) != np.sum(other["x"][:, 0] > 0), "batches that differ in what counts"
    assert found["heldout/all"] == pytest.approx(x.mean(), rel=1e-4)
    assert found["heldout/part"] == pytest.approx(x[x > 0].mean(), rel=1e-4) and "heldout/none" not in found


def test_starting_from_given_parameters(tmp_path):
    task = linear.LinearTask()
    params, extra = jax.tree.map(np.asarray, task.init(jax.random.key(7)))
    config = linear.make_config(num_steps=10)
    linear.run(tmp_path, config, on_start=lambda: Initial(params, {**extra, "mean_loss": np.float32(5)}))
    start = restore_parts(tmp_path, 0)
    assert_equal((start[0], start[1]), (params, params))
    assert start[2]["mean_loss"] == 5
    linear.run(tmp_path, config, on_start=lambda: pytest.fail("a run that goes on starts from its checkpoint"))


def test_a_shape_among_given_parameters_keeps_the_fresh_value(tmp_path):
    params, _ = jax.tree.map(np.asarray, linear.LinearTask().init(jax.random.key(7)))
    config = linear.make_config(num_steps=3)
    linear.run(tmp_path / "fresh", config)
    bias = params["model"]["linear"]["bias"] = np.ones(16, np.float32)
    params["model"]["linear"]["kernel"] = jax.ShapeDtypeStruct((8, 16), np.float32)
    linear.run(tmp_path / "given", config, on_start=lambda: Initial(params))
    fresh, given = (restore_parts(tmp_path / name, 0)[0]["model"]["linear"] for name in ("fresh", "given"))
    np.testing.assert_array_equal(given["kernel"], fresh["kernel"])
    np.testing.assert_array_equal(given["bias"], bias)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"model": {"linear": {"kernel": np.zeros((3, 16)), "bias": np.zeros(16)}}},
            r"kernel has shape \(3, 16\), the model",
        ),
        ({"model": {"linear": {"bias": np.zeros(16)}}}, "linear/kernel is missing"),
        ({"generator": {}}, "group 'generator', but the task has model"),
    ],
)
def test_given_parameters_that_do_not_fit_are_named(tmp_path, params, message):
    with pytest.raises(ConfigError, match=message):
        linear.run(tmp_path, linear.make_config(num_steps=3), on_start=lambda: Initial(params))


def test_what_fails_at_the_end_loses_no_training(tmp_path):
    def fail(state):
        raise RuntimeError("the statistics are bad")

    config = linear.make_config(num_steps=8, checkpoint_every=5)
    with pytest.raises(RuntimeError, match="the statistics are bad"):
        linear.run(tmp_path, config, on_finish=fail)
    assert latest_step(tmp_path) == 8
    loader = linear.LinearLoader()
    seen = []
    linear.run(tmp_path, config, loader=loader, on_finish=lambda state: seen.append(int(state.step)) or state)
    assert seen == [8] and not loader.asked


@pytest.mark.parametrize("axis", ["tensor", "context"])
def test_mesh_axes_that_divide_nothing_are_refused(tmp_path, axis):
    config = linear.make_config(mesh=MeshConfig(**{axis: 2}))
    with pytest.raises(ConfigError, match=f"mesh.{axis} is 2, but nothing of this model is divided along it"):
        linear.run(tmp_path, config, devices=jax.devices())


def test_a_changed_model_is_refused_and_nothing_is_touched(tmp_path):
    def start(width, **changes):
        config = linear.make_config(**changes)
        settings = to_config_dict(config)
        settings.transformer = {"width": width, "depth": 2}
        return linear.run(tmp_path, config, resolved_config=settings, model_keys=("transformer",))

    start(192)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"transformer\.width: 192 -> 256"):
        start(256, num_steps=30)
    assert files(tmp_path) == before
    start(192, num_steps=30)  # other settings may change


def test_model_keys_are_whole_names(tmp_path):
    config = linear.make_config()
    settings = to_config_dict(config)
    settings.text_encoder = 1
    linear.run(tmp_path, config, resolved_config=settings, model_keys=("text",))
    settings.text_encoder = 2
    linear.run(tmp_path, config, resolved_config=settings, model_keys=("text",))


def test_a_setting_that_an_older_version_did_not_know_is_no_other_model(tmp_path, caplog):
    config = linear.make_config()
    settings = to_config_dict(config)
    settings.transformer = {"width": 192}
    linear.run(tmp_path, config, resolved_config=settings, model_keys=("transformer",))
    settings.transformer.depth = 2
    linear.run(tmp_path, config, resolved_config=settings, model_keys=("transformer",))
    assert "resuming with a changed config: transformer.depth: (absent) -> 2" in caplog.text


def test_metrics_without_a_checkpoint_are_not_overwritten(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="no whole checkpoint to resume from"):
        linear.run(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("y"), "no entry 'y', which the task needs; they have row, x"),
        (lambda batch: batch.update(x=batch["x"][:, :3]), r"'x' has rows of shape \(3,\).*expects \(8,\)"),
        (lambda batch: batch.update(x=batch["x"].astype(np.float64)), "dtype float64; the task expects .* float32"),
    ],
)
def test_batches_that_do_not_fit_the_task(tmp_path, change, message):
    class Loader(linear.LinearLoader):
        def batches(self, start_step=0):
            for batch in super().batches(start_step):
                change(batch)
                yield batch

    with pytest.raises(ConfigError, match=message):
        linear.run(tmp_path / "run", loader=Loader())
    assert not (tmp_path / "run").exists()


def test_a_batch_size_that_does_not_divide(tmp_path):
    with pytest.raises(ConfigError, match=r"a batch of 6 rows does not divide into accumulation=4 .* multiple of 4"):
        linear.run(tmp_path / "run", linear.make_config(accumulation=4), loader=linear.LinearLoader(batch_size=6))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("takes_long", [False, True])
def test_a_state_is_saved_before_it_is_evaluated_for_long(tmp_path, takes_long):
    evaluator = Counting(every=5)
    evaluator.takes_long = takes_long
    linear.run(tmp_path, linear.make_config(num_steps=20, keep_checkpoints=9), evaluators=[evaluator])
    saved = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ([0, 5, 10, 15, 20] if takes_long else [0, 10, 20])


def test_steps_for_budget_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, config = linear.LinearTask(), linear.make_config(anomalies=AnomalyConfig(spike="skip"))
    steps = steps_for_budget(task, linear.LinearLoader(seconds=0.02), config, 2.0, devices=jax.devices()[:1])
    assert 10 <= steps <= 100
    assert list(tmp_path.iterdir()) == []


def test_profile_traces_the_steps_asked_for(tmp_path):
    linear.run(tmp_path, linear.make_config(num_steps=6), profile=range(3, 5))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_ctrl_c_ends_the_loaders_workers_too(tmp_path):
    class Loader(linear.LinearLoader):
        def batches(self, start_step=0):
            for step, batch in enumerate(super().batches(start_step), start_step):
                if step == 7:
                    os.kill(os.getpid(), signal.SIGINT)
                    raise RuntimeError("a worker died")
                yield batch

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        linear.run(tmp_path, loader=Loader())
    assert stopped.value.code == 130 and latest_step(tmp_path) == 7
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_while_the_last_state_is_finished_is_not_forgotten(tmp_path, capsys):
    """Whoever called goes no further; the training itself is complete."""

    def finish(state):
        os.kill(os.getpid(), signal.SIGTERM)
        return state

    with pytest.raises(Interrupted) as stopped:
        linear.run(tmp_path, linear.make_config(num_steps=4), on_finish=finish)
    assert stopped.value.code == os.EX_TEMPFAIL and latest_step(tmp_path) == 4
    linear.run(tmp_path, linear.make_config(num_steps=4))
    assert "has finished its 4 steps" in "".join(capsys.readouterr())


def test_every_line_of_the_log_is_json(tmp_path):
    with pytest.raises(NonFiniteError):
        linear.run(tmp_path, task=linear.LinearTask(bad_loss_at=5))

    def refuse(constant):
        raise AssertionError(constant)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
