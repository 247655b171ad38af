"""Both stages, with everything they have: a run that is stopped and goes on is the run that was never stopped; on other devices nearly so."""

import contextlib
import itertools

import jax
import jobs
import numpy as np
import pytest
import recorder
import tiny
import trainings

from walt import experiment
from walt.config import apply_overrides, load
from walt.data import loader
from walt.training.metrics import read_metrics
from walt.training.preemption import Interrupted, StopSignal

EVERYTHING = {  # accumulation, self-conditioning, stills beside videos, captions, an evaluator
    "training.accumulation": "2",
    "training.checkpoint_every": "4",
    "transformer.self_conditioning": "True",
    "transformer.in_channels": "7",
    "diffusion.self_conditioning_rate": "0.9",
    "heldout_every": "3",
    "samples_every": "0",
}
STAGE_1 = {
    "data.batch_size": "4",
    "training.accumulation": "2",
    "training.log_every": "1",
    "training.checkpoint_every": "4",
    "training.optimizer.warmup_steps": "2",
    "heldout_every": "3",
    "clip_size": "None",
    "calibration_clips": "4",
    "autoencoder.latent_channels": "2",
    "autoencoder.base_channels": "2",
    "autoencoder.channel_multipliers": "1,1",
    "autoencoder.res_blocks": "1",
    "autoencoder.mid_blocks": "0",
    "autoencoder.strides": "((4, 2),)",
    "autoencoder.temporal_kernels": "1,3",
    "autoencoder.patchify": "2",
    "autoencoder.groups": "1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Starts a run of one stage, perhaps to be told to end at a step, and writes down its examples beside it; returns the work directory."""

    def run(name, stage=2, stop=None, devices=1, num_steps=9, **changes):
        with monkeypatch.context() as patched:
            for attribute in ("batches", "_counted"):
                patched.setattr(loader._Loader, attribute, getattr(loader._Loader, attribute))  # to be put back
            recorder.record_batches(tmp_path / name)
            patched.setattr(StopSignal, "agreed", lambda self, step: step == stop)
            ended = pytest.raises(Interrupted) if stop else contextlib.nullcontext()
            with ended:
                config = configured(data, stage, {"training.num_steps": str(num_steps)} | changes)
                experiment.train(config, tmp_path / name, devices=jax.devices()[:devices])
        return tmp_path / name

    return run


def configured(data, stage, changes):
    if stage == 2:
        return apply_overrides(load(str(data / "config.py")), EVERYTHING | changes)
    return apply_overrides(load("autoencoder/atari:mini"), STAGE_1 | {"data.path": str(data / "clips")} | changes)


def losses(workdir):
    return {record["step"]: record["loss"] for record in read_metrics(workdir) if "loss" in record}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_stopping_changes_nothing(train, stage):
    straight = train("straight", stage)
    for stop in (3, 6, None):
        stopped = train("stopped", stage, stop)
    trainings.assert_same_runs(stopped, straight)
    ids = trainings.consumed(straight)
    assert list(ids) == list(range(9)) and trainings.digest(trainings.consumed(stopped)) == trainings.digest(ids)
    assert len(losses(straight)) == 9
    if stage == 2:
        used = {sum(example >= 0 for example in row) for row in itertools.chain(*ids.values())}
        assert used == {1, 2}, "videos and stacks of stills"


@pytest.mark.slow
def test_stopping_at_any_step_changes_nothing(train):
    straight = train("straight")
    for stop in range(1, 9):
        train(f"at_{stop}", stop=stop)
        trainings.assert_same_runs(train(f"at_{stop}"), straight)


@pytest.mark.slow
def test_stopping_a_run_with_a_critic_changes_nothing(train):
    critic = {
        "loss.adversarial.discriminator.base_channels": "4",
        "loss.adversarial.discriminator.channel_multipliers": "1,2",
    }
    straight = train("straight", 1, num_steps=5, **critic)
    train("stopped", 1, 3, num_steps=5, **critic)
    trainings.assert_same_runs(train("stopped", 1, num_steps=5, **critic), straight)


def assert_close(workdir, straight):
    """The first loss after the fifth step to 1e-6, twenty of them to 1e-4, and the same examples in the same order."""
    ours, theirs = losses(workdir), losses(straight)
    assert list(ours) == list(theirs) == list(range(1, 26))
    np.testing.assert_allclose(ours[6], theirs[6], rtol=1e-6)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    assert trainings.digest(trainings.consumed(workdir)) == trainings.digest(trainings.consumed(straight))


MESH = {"training.mesh.data": "2", "training.mesh.fsdp": "2"}


@pytest.mark.slow
@pytest.mark.parametrize("more_later", [True, False])
def test_a_run_goes_on_on_other_devices(train, more_later):
    straight = train("straight", num_steps=25)
    few, many = {"devices": 1}, {"devices": 4, **MESH}
    train("elastic", stop=5, num_steps=25, **(few if more_later else many))
    assert_close(train("elastic", num_steps=25, **(many if more_later else few)), straight)


@pytest.mark.slow
@pytest.mark.parametrize("more_later", [True, False])
def test_a_run_goes_on_in_other_processes(train, data, tmp_path, more_later):
    def process(processes, num_steps):
        command = [recorder.__file__, str(tmp_path / "elastic"), f"--config={data / 'config.py'}"]
        changes = EVERYTHING | {"training.num_steps": str(num_steps), "training.optimizer.schedule": "constant"}
        command += [f"--workdir={tmp_path / 'elastic'}", *(f"--config.{key}={value}" for key, value in changes.items())]
        jobs.run(command, processes)

    constant = {"training.optimizer.schedule": "constant"}
    straight = train("straight", num_steps=25, **constant)
    process(1 if more_later else 2, 5)
    process(2 if more_later else 1, 25)
    assert_close(tmp_path / "elastic", straight)
