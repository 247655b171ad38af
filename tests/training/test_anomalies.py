"""Numbers that go wrong: what is left out, what is rolled back, what stops the run; and that a resumed run does the same."""

import json
import math
import sys

import jax
import jobs
import linear
import numpy as np
import pytest
import trainings

from walt.config import ConfigError
from walt.parallel.config import MeshConfig
from walt.parallel.mesh import make_mesh
from walt.training import loop, preemption
from walt.training.anomalies import Judge, LossSpikeError, NonFiniteError, SkippedBatches
from walt.training.checkpoint import Checkpoints, Clock, RollBack
from walt.training.config import AnomalyConfig
from walt.training.folder import latest_step
from walt.training.metrics import read_metrics
from walt.training.repetition import SilentCorruptionError, copied, require_same
from walt.training.state import create_state

BAD = {
    "loss": linear.LinearTask(bad_loss_at=25),
    "gradients": linear.LinearTask(bad_gradients_at=(25,)),
    "spike": linear.LinearTask(jumps_at=(25,)),
}


def config(num_steps=32, **anomalies):
    return linear.make_config(num_steps=num_steps, anomalies=AnomalyConfig(spike_window=8, **anomalies))


def listed(workdir, process=0):
    return [json.loads(line) for line in (workdir / f"skipped_batches.{process}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "what", ["loss", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gradients", "spike"))]
)
def test_rolling_back_leaves_the_batch_out_and_lists_its_examples(tmp_path, what):
    settings = config(**{what: "roll_back"})
    linear.run(tmp_path / "run", settings, task=BAD[what])
    [entry] = listed(tmp_path / "run")
    assert entry["step"] == 25 and entry["example_ids"] == [[i] for i in range(25 * 16, 26 * 16)]
    # As if the batch had never been there: the same run on data that is good, told beforehand.
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "skipped_batches.0.jsonl").write_text('{"step": 25}\n')
    linear.run(tmp_path / "told", settings)
    trainings.assert_same_runs(tmp_path / "run", tmp_path / "told")
    line = next(record for record in read_metrics(tmp_path / "run") if record["step"] == 28)
    assert line["skipped"] == 0.25 and line["skipped_batches"] == 1


@pytest.mark.slow
def test_a_run_that_rolled_back_is_resumed_without_the_batch(tmp_path):
    settings, task = config(loss="roll_back"), BAD["loss"]
    with pytest.raises(RuntimeError, match="disk of this host"):
        linear.run(tmp_path / "run", settings, task=task, loader=linear.LinearLoader(failure="raise:28"))
    assert latest_step(tmp_path / "run") == 20
    linear.run(tmp_path / "run", settings, task=task)
    linear.run(tmp_path / "straight", settings, task=task)
    trainings.assert_same_runs(tmp_path / "run", tmp_path / "straight")
    assert len(listed(tmp_path / "run")) == 1


@pytest.mark.slow
def test_the_processes_of_a_job_roll_back_together(tmp_path):
    settings = {"num_steps": 32, "anomalies": {"loss": "roll_back"}, "task": {"bad_loss_at": 25}}
    for process in jobs.run([linear.__file__, str(tmp_path / "run"), json.dumps(settings)], 2):
        assert process.output.count("rolled back to step 20") == 1
    for index in range(2):
        [entry] = listed(tmp_path / "run", index)
        rows = range(25 * 16 + 8 * index, 25 * 16 + 8 * (index + 1))
        assert entry["step"] == 25 and entry["example_ids"] == [[row] for row in rows]
    linear.run(tmp_path / "alone", config(loss="roll_back"), task=BAD["loss"])
    ours, theirs = ([record["loss"] for record in read_metrics(tmp_path / name)] for name in ("run", "alone"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_rolling_back_has_a_limit(tmp_path):
    settings = config(loss="roll_back", max_skipped_batches=2)
    with pytest.raises(
        NonFiniteError, match=r"loss is nan at step 26, after 2 batches were left out \(of steps 23, 24\)"
    ):
        linear.run(tmp_path, settings, task=linear.LinearTask(bad_loss_at=(23, 24, 25)))
    assert latest_step(tmp_path) == 20 and [entry["step"] for entry in listed(tmp_path)] == [23, 24]


def test_a_loss_that_is_not_finite_may_be_skipped_and_counted(tmp_path):
    state = linear.run(tmp_path, config(loss="skip"), task=BAD["loss"])
    line = next(record for record in read_metrics(tmp_path) if record["step"] == 28)
    assert int(state.step) == 32 and line["skipped"] == 0.25 and math.isfinite(line["loss"])
    with pytest.raises(NonFiniteError, match="loss is nan at step 13, and the updates of the 10 steps before it"):
        linear.run(tmp_path / "many", config(loss="skip"), task=linear.LinearTask(bad_loss_at=tuple(range(2, 20))))


def test_gradients_that_are_not_finite_may_stop_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="a gradient is not finite at step 26; the update was not applied"):
        linear.run(tmp_path, config(gradients="stop"), task=BAD["gradients"])


def test_a_jump_stops_the_run_if_it_shall(tmp_path):
    with pytest.raises(
        LossSpikeError, match=r"loss is [\d.]+, which is above [\d.]+, a jump, at step 26; the last good"
    ):
        linear.run(tmp_path, config(spike="stop"), task=BAD["spike"])


@pytest.mark.slow
def test_the_update_of_a_jump_may_be_skipped_and_resuming_does_so_too(tmp_path):
    settings, task = config(spike="skip"), linear.LinearTask(jumps_at=(21, 25))
    with pytest.raises(RuntimeError, match="disk of this host"):
        linear.run(tmp_path / "run", settings, task=task, loader=linear.LinearLoader(failure="raise:24"))
    linear.run(tmp_path / "run", settings, task=task)
    linear.run(tmp_path / "straight", settings, task=task)
    trainings.assert_same_runs(tmp_path / "run", tmp_path / "straight")
    skipped = {record["step"]: record["skipped"] for record in read_metrics(tmp_path / "run")}
    assert {step for step, share in skipped.items() if share} == {24, 28}


def test_what_a_jump_is(tmp_path):
    judge = Judge(config(spike="stop", spike_deviations=10.0), Clock(), SkippedBatches(tmp_path, None))
    for update, loss in enumerate([1.0, 1.1, 0.9, 1.0, 1.0, 1.05, 0.95, 1.0], start=1):
        assert judge.loss_limit(update) == math.inf
        judge.look_at(update, {"loss": loss, "skipped": 0.0})
    # The median is 1, and the median distance from it 0.025.
    assert judge.loss_limit(9) == math.inf, "the last loss has not been read when the next update is computed"
    assert judge.loss_limit(10) == pytest.approx(1 + 10 * 1.4826 * 0.025)
    judge.look_at(9, {"loss": 1.3, "skipped": 0.0})
    with pytest.raises(LossSpikeError):
        judge.look_at(10, {"loss": 1.4, "skipped": 0.0})
    assert judge.losses[-1] == (9, 1.3), "a jump is no measure for others"


def test_a_step_run_twice_gives_the_same_and_changes_nothing(tmp_path):
    linear.run(tmp_path / "twice", config(num_steps=20, repeat_every=3))
    linear.run(tmp_path / "once", config(num_steps=20))
    trainings.assert_same_runs(tmp_path / "twice", tmp_path / "once")


@pytest.mark.parametrize("value", [pytest.param(0.25, marks=pytest.mark.slow), 5e-8])
def test_a_single_bit_that_differs_stops_the_run(tmp_path, monkeypatch, value):
    """A device that computes wrongly: here it is the copy of the state that is not one."""

    def flipped(state):
        state = copied(state)
        bias = state.ema["model"]["linear"]["bias"]
        state.ema["model"]["linear"]["bias"] = bias.at[3].add(value)
        return state

    copied = loop.copied
    monkeypatch.setattr(loop, "copied", flipped)
    with pytest.raises(
        SilentCorruptionError, match=r"step 12 was run twice .* 1 of .* arrays differ.*ema/model/linear/bias"
    ):
        linear.run(tmp_path, config(num_steps=20, repeat_every=12))
    assert latest_step(tmp_path) == 10


@pytest.mark.parametrize("device", [0, 1])
def test_the_copy_of_every_device_is_looked_at(device):
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    with jax.set_mesh(mesh):
        state = create_state(linear.LinearTask(), linear.make_config(), mesh)
        same = copied(state)
        require_same(1, state, same)
        bias = same.params["model"]["linear"]["bias"]
        values = [np.array(shard.data) for shard in bias.addressable_shards]
        values[device][3] += 1e-7
        parts = [jax.device_put(value, shard.device) for value, shard in zip(values, bias.addressable_shards)]
        wrong = jax.make_array_from_single_device_arrays(bias.shape, bias.sharding, parts)
        same.params["model"]["linear"]["bias"] = wrong
        with pytest.raises(SilentCorruptionError, match=r"1 of .* arrays differ, such as params/model/linear/bias"):
            require_same(1, state, same)


def test_a_signal_during_a_roll_back_cuts_no_save_short(tmp_path, monkeypatch):
    wait, could_be_ended = Checkpoints.wait, []

    def waiting(self):
        if isinstance(sys.exc_info()[1], RollBack):
            could_be_ended.append(preemption._active.may_end())
        wait(self)

    monkeypatch.setattr(Checkpoints, "wait", waiting)
    linear.run(tmp_path, config(loss="roll_back"), task=BAD["loss"])
    assert could_be_ended[0] is False


@pytest.mark.parametrize(
    "wrong", [{"spike_deviations": 0.0}, {"spike_window": 1}, {"max_skipped_batches": -1}, {"repeat_every": 0}]
)
def test_settings_that_make_no_sense_are_named(wrong):
    with pytest.raises(ConfigError, match=f"anomalies.{next(iter(wrong))} must"):
        AnomalyConfig(**wrong)


def test_losses_for_the_next_start_are_numbers(tmp_path):
    settings = config(num_steps=10, spike="stop")
    linear.run(tmp_path, settings)
    clock = json.loads((tmp_path / "checkpoints" / "10" / "clock" / "metadata").read_text())
    assert [step for step, _ in clock["losses"]] == list(range(2, 11))
    assert jax.tree.all(jax.tree.map(np.isfinite, clock["losses"]))


def test_a_list_whose_last_line_was_cut_short_takes_another(tmp_path):
    (tmp_path / "skipped_batches.0.jsonl").write_text('{"step": 2}\n{"step": 3, "rea')
    SkippedBatches(tmp_path, None).add(7, "a jump")
    assert SkippedBatches(tmp_path, None).steps == {2, 7}
