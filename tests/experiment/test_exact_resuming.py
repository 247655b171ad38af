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
from walt.autoencoder.config import AdversarialConfig, DiscriminatorConfig
from walt.config import apply_overrides, load, to_config_dict
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


def run(data, workdir, stage=2, stop=None, devices=1, num_steps=9, critic=None, **changes):
    """A start of a run of one stage, perhaps told to end at a step, which writes down its examples beside it; returns the work directory."""
    with pytest.MonkeyPatch.context() as patched:
        for attribute in ("batches", "_counted"):
            patched.setattr(loader._Loader, attribute, getattr(loader._Loader, attribute))  # to be put back
        recorder.record_batches(workdir)
        patched.setattr(StopSignal, "agreed", lambda self, step: step == stop)
        ended = pytest.raises(Interrupted) if stop else contextlib.nullcontext()
        with ended:
            config = configured(data, stage, {"training.num_steps": str(num_steps)} | changes, critic)
            experiment.train(config, workdir, devices=jax.devices()[:devices])
    return workdir


@pytest.fixture
def train(data, tmp_path):
    """`run` in a folder of this test."""
    return lambda name, *arguments, **settings: run(data, tmp_path / name, *arguments, **settings)


def configured(data, stage, changes, critic=None):
    if stage == 2:
        return apply_overrides(load(str(data / "config.py")), EVERYTHING | changes)
    config = load("autoencoder/atari:mini")
    if critic is not None:
        config.loss.adversarial = to_config_dict(AdversarialConfig(discriminator=critic))
    return apply_overrides(config, STAGE_1 | {"data.path": str(data / "clips")} | changes)


def losses(workdir):
    return {record["step"]: record["loss"] for record in read_metrics(workdir) if "loss" in record}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "stops"), [(1, (3, 6)), (2, range(1, 9))])
def test_stopping_changes_nothing(train, stage, stops):
    straight = train("straight", stage)
    for stop in (*stops, None):
        stopped = train("stopped", stage, stop)
    trainings.assert_same_runs(stopped, straight)
    ids = trainings.consumed(straight)
    assert list(ids) == list(range(9)) and trainings.digest(trainings.consumed(stopped)) == trainings.digest(ids)
    assert len(losses(straight)) == 9
    if stage == 2:
        used = {sum(example >= 0 for example in row) for row in itertools.chain(*ids.values())}
        assert used == {1, 2}, "videos and stacks of stills"


@pytest.mark.slow
def test_stopping_a_run_with_a_critic_changes_nothing(train):
    settings = {"num_steps": 5, "critic": DiscriminatorConfig(base_channels=4, channel_multipliers=(1, 2))}
    straight = train("straight", 1, **settings)
    train("stopped", 1, 3, **settings)
    trainings.assert_same_runs(train("stopped", 1, **settings), straight)
    assert any("discriminator" in name for name in trainings.everything(straight))


CONSTANT = {"training.optimizer.schedule": "constant"}  # a rate that does not depend on where a run ends
MESH = {"training.mesh.data": "2", "training.mesh.fsdp": "2"}


@pytest.fixture(scope="module")
def long(data, tmp_path_factory):
    """A run of 25 steps on one device."""
    return run(data, tmp_path_factory.mktemp("long") / "straight", num_steps=25, **CONSTANT)


def assert_close(workdir, straight):
    """The first loss after the fifth step to 1e-6, twenty of them to 1e-4, and the same examples in the same order."""
    ours, theirs = losses(workdir), losses(straight)
    assert list(ours) == list(theirs) == list(range(1, 26))
    np.testing.assert_allclose(ours[6], theirs[6], rtol=1e-6)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)
    assert trainings.digest(trainings.consumed(workdir)) == trainings.digest(trainings.consumed(straight))


@pytest.mark.slow
@pytest.mark.parametrize("more_later", [True, False])
def test_a_run_goes_on_on_other_devices(train, long, more_later):
    few, many = {"devices": 1}, {"devices": 4, **MESH}
    train("elastic", stop=5, num_steps=25, **CONSTANT, **(few if more_later else many))
    assert_close(train("elastic", num_steps=25, **CONSTANT, **(many if more_later else few)), long)


@pytest.mark.slow
@pytest.mark.parametrize("more_later", [True, False])
def test_a_run_goes_on_in_other_processes(data, long, tmp_path, more_later):
    def process(processes, num_steps):
        command = [recorder.__file__, str(tmp_path / "elastic"), f"--config={data / 'config.py'}"]
        changes = EVERYTHING | CONSTANT | {"training.num_steps": str(num_steps)}
        command += [f"--workdir={tmp_path / 'elastic'}", *(f"--config.{key}={value}" for key, value in changes.items())]
        jobs.run(command, processes, timeout=600)

    process(1 if more_later else 2, 5)
    process(2 if more_later else 1, 25)
    assert_close(tmp_path / "elastic", long)
