import json
import logging
import shutil

import jax
import linear
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint._src.path import atomicity

from walt.config import ConfigError, to_config_dict
from walt.parallel.config import MeshConfig
from walt.training import checkpoint
from walt.training.checkpoint import Checkpoints, Clock, RollBack, restore_parts, stored_config
from walt.training.folder import CheckpointError, latest_step, recover
from walt.training.optimizer import make_optimizer
from walt.training.state import TrainState


def files(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    return workdir, linear.run(workdir, linear.make_config(num_steps=20, keep_checkpoints=2))


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def test_the_last_ones_are_kept(tmp_path):
    linear.run(tmp_path, linear.make_config(num_steps=20, checkpoint_every=4, keep_checkpoints=2))
    assert steps(tmp_path) == [16, 20]


def test_parts_are_numpy_trees_and_need_no_task(trained):
    workdir, state = trained
    params, ema, extra, config, step = restore_parts(workdir)
    assert step == 20 and config.num_steps == 20 and config.optimizer.learning_rate == 0.05
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves((params, ema, extra)))
    jax.tree.map(np.testing.assert_array_equal, (params, ema, extra), (state.params, state.ema, state.extra))
    assert restore_parts(workdir, 10)[4] == 10


def test_missing_checkpoints_are_named(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing holds no checkpoint"):
        restore_parts(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; its latest is 20"):
        restore_parts(trained[0], 7)
    assert latest_step(tmp_path) is None


def test_the_config_is_json(trained):
    text = (trained[0] / "checkpoints" / "20" / "config" / "metadata").read_text()
    assert json.loads(text)["optimizer"]["name"] == "adamw"
    assert stored_config(trained[0]).mesh.data == -1


def test_half_written_checkpoints_are_ignored_but_said(copied, caplog):
    broken = "20.orbax-checkpoint-tmp"
    (copied / "checkpoints" / "20").rename(copied / "checkpoints" / broken)
    (copied / "checkpoints" / broken / "commit_success.txt").unlink()
    shutil.rmtree(copied / "checkpoints" / broken / "training")
    assert latest_step(copied) == 10
    assert restore_parts(copied)[4] == 10
    assert f"ignoring half-written checkpoint {copied / 'checkpoints' / broken}" in caplog.text
    caplog.clear()
    state = linear.run(copied, linear.make_config(num_steps=20, keep_checkpoints=2))
    assert f"removing {copied / 'checkpoints' / broken}, which an interruption has left" in caplog.text
    assert int(state.step) == 20 and latest_step(copied) == 20


def test_a_damaged_checkpoint_is_an_error_and_no_fresh_start(copied):
    for data in (copied / "checkpoints" / "20" / "weights" / "d").iterdir():
        data.write_bytes(b"nonsense")
    for manifest in (copied / "checkpoints" / "20" / "weights").rglob("manifest.ocdbt"):
        manifest.write_bytes(b"nonsense")
    damage = r"checkpoints/20 cannot be read: [^\n]*; it is damaged: move it out of checkpoints to go back"
    with pytest.raises(CheckpointError, match=damage) as error:
        linear.run(copied, linear.make_config(num_steps=30))
    assert len(str(error.value)) < 1000  # TensorStore's own account is longer than that
    with pytest.raises(CheckpointError, match=damage):
        restore_parts(copied)
    shutil.rmtree(copied / "checkpoints" / "20")
    assert int(linear.run(copied, linear.make_config(num_steps=12)).step) == 12


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (linear.LinearTask(("generator",)), {}),
        (None, {"optimizer": {"name": "adafactor"}}),
        (None, {"ema_decay": None}),
    ],
)
def test_another_model_or_optimiser_is_refused_and_nothing_is_called_damaged(copied, task, changes):
    with pytest.raises(
        ConfigError, match=r"that of another model, optimiser or moving average: .* arrays differ"
    ) as error:
        linear.run(copied, linear.make_config(num_steps=30, **changes), task=task)
    assert "damaged" not in str(error.value)
    assert latest_step(copied) == 20


def test_a_run_goes_on_with_another_weight_decay(copied):
    assert int(linear.run(copied, linear.make_config(num_steps=22, optimizer={"weight_decay": 0.0})).step) == 22


def test_a_damaged_config_is_called_damaged(copied):
    (copied / "checkpoints" / "20" / "config" / "metadata").write_text('{"num_st')
    with pytest.raises(
        CheckpointError, match=r"checkpoints/20 cannot be read: config/metadata has 8 bytes.*; it is damaged"
    ):
        linear.run(copied, linear.make_config(num_steps=30))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (ValueError("PERMISSION_DENIED: Error opening manifest [tensorstore_spec='{...}']"), "Error opening manifest"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "out of memory"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_what_is_no_damage_is_told_by_its_cause_alone(trained, monkeypatch, error, cause):
    def fail(path):
        raise error

    monkeypatch.setattr(checkpoint, "_stored_tree", fail)
    with pytest.raises(CheckpointError, match=f"checkpoints/20 cannot be read: .*{cause}$") as raised:
        restore_parts(trained[0])
    assert "move" not in str(raised.value) and "tensorstore_spec" not in str(raised.value)


def decaying(config):
    return optax.add_decayed_weights(config.weight_decay)


def adam(config):
    return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


CHAINS = {
    "today": make_optimizer,
    "adam alone": lambda config: optax.chain(adam(config)),
    "something before adam": lambda config: optax.chain(optax.clip(1e9), adam(config), decaying(config)),
}


@pytest.mark.parametrize("mesh", [{"data": 1}, {"fsdp": 8, "data": 1}])
@pytest.mark.parametrize(
    ("before", "after"),
    [("adam alone", "today"), ("today", "adam alone"), ("something before adam", "today")],
)
def test_stages_of_the_optimiser_that_remember_nothing_do_not_matter(tmp_path, monkeypatch, before, after, mesh):
    def run(chain, mesh, num_steps):
        for module in ("state", "step"):
            monkeypatch.setattr(f"walt.training.{module}.make_optimizer", CHAINS[chain])
        constant = {"weight_decay": 0.0, "schedule": "constant"}
        config = linear.make_config(num_steps=num_steps, optimizer=constant, mesh=MeshConfig(**mesh))
        return linear.run(tmp_path, config, devices=jax.devices()[: 1 if mesh == {"data": 1} else None])

    first = run(before, {"data": 1}, 4)
    kept = jax.tree.map(np.asarray, (first.params, first.ema, jax.tree.leaves(first.opt)))
    second = run(after, mesh, 4)
    again = jax.tree.map(np.asarray, (second.params, second.ema, jax.tree.leaves(second.opt)))
    jax.tree.map(np.testing.assert_array_equal, kept, again)
    assert jax.tree.structure(second.opt["model"]) == jax.tree.structure(
        CHAINS[after](linear.make_config().optimizer).init(second.params["model"])
    )
    assert int(run(after, mesh, 6).step) == 6


@pytest.mark.parametrize("foreign", ["500/model.safetensors", "500/default/manifest.ocdbt", "epoch=3.ckpt"])
def test_checkpoints_of_another_program_are_refused_and_left_alone(copied, foreign):
    for workdir in (copied, copied.parent / "other"):
        file = workdir / "checkpoints" / foreign
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("weights")
        before = files(workdir)
        name = foreign.partition("/")[0]
        with pytest.raises(ConfigError, match=f"checkpoints holds {name}, which is no checkpoint of walt"):
            linear.run(workdir, linear.make_config(num_steps=30))
        recover(workdir)
        assert files(workdir) == before


def test_what_an_interrupted_deletion_left_is_no_other_program(copied):
    (copied / "checkpoints" / "5").mkdir()
    (copied / "checkpoints" / "7").mkdir()
    (copied / "checkpoints" / "7" / "_CHECKPOINT_METADATA").write_text("{}")
    assert int(linear.run(copied, linear.make_config(num_steps=22)).step) == 22


def test_another_config_is_refused_before_anything_is_tidied(copied):
    folder = copied / "checkpoints"
    (folder / "20").rename(folder / "20.replaced")
    (folder / "10" / "commit_success.txt").unlink()
    before = files(copied)
    message = r"undo:\n  seed: 0 -> 1\n(.|\n)*also changed, which alone would be fine: log_every: 4 -> 7"
    with pytest.raises(ConfigError, match=message):
        linear.run(copied, linear.make_config(seed=1, log_every=7), model_keys=("seed",))
    assert latest_step(copied) == restore_parts(copied)[4] == 20
    assert files(copied) == before


@pytest.mark.parametrize("second", ["absent", "half-written", "whole"])
def test_a_checkpoint_that_was_being_replaced_is_not_lost(copied, second):
    folder = copied / "checkpoints"
    for step in ("0", "10"):
        shutil.rmtree(folder / step, ignore_errors=True)
    shutil.copytree(folder / "20", folder / "20.replaced")
    if second == "half-written":
        (folder / "20" / "commit_success.txt").unlink()
    elif second == "absent":
        shutil.rmtree(folder / "20")
    recover(copied)
    recover(copied)
    assert latest_step(copied) == 20 and not (folder / "20.replaced").exists()
    assert int(linear.run(copied, linear.make_config(num_steps=20, keep_checkpoints=2)).step) == 20


def test_a_save_that_fails_in_the_background_fails_the_run(tmp_path, monkeypatch):
    async def no_space(self):
        if self.get_final().name == "10":
            raise OSError("no space left on device")
        return await finalize(self)

    finalize = atomicity.AtomicRenameTemporaryPath.finalize
    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", no_space)
    with pytest.raises(CheckpointError, match=r"could not be written: .*no space left on device"):
        linear.run(tmp_path, linear.make_config(num_steps=20))
    assert latest_step(tmp_path) == 0


def test_rolling_back_does_not_hide_a_save_that_failed(tmp_path, monkeypatch):
    async def broken(self):
        raise OSError("Input/output error")

    monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", broken)
    arrays = {"model": {"kernel": jax.numpy.ones(3)}}
    state = TrainState(jax.numpy.int32(10), arrays, arrays, {}, arrays, jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"could not be written: .*Input/output error"):
        with Checkpoints(tmp_path, 1) as checkpoints:
            checkpoints.save(state, 10, Clock(), to_config_dict(linear.make_config()))
            raise RollBack


def test_saving_in_the_background_while_memory_is_reused(tmp_path):
    """The step donates its state: what is saved must be the state as it was, not what overwrote it."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    whole = jax.NamedSharding(mesh, jax.P())
    config = linear.make_config()
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    params = {"model": {"kernel": jax.device_put(np.ones((2000, 2000), np.float32), whole)}}
    step, key = jax.device_put(np.int32(0), whole), jax.random.key(0)
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(TrainState(step, params, {}, {}, {}, key), 0, Clock(), to_config_dict(config))
        for _ in range(4):
            params = overwrite(params)
        jax.block_until_ready(params)
    assert (restore_parts(tmp_path)[0]["model"]["kernel"] == 1).all()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"data": 1}, {"data": 2, "fsdp": 4}),
        ({"data": 2, "fsdp": 4}, {"data": 1}),
        ({"fsdp": 8, "data": 1}, {"fsdp": 2}),
    ],
)
def test_resuming_on_another_mesh(trained, tmp_path, before, after):
    def run(num_steps, sizes):
        config = linear.make_config(num_steps=num_steps, optimizer={"schedule": "constant"}, mesh=MeshConfig(**sizes))
        devices = jax.devices()[:1] if sizes == {"data": 1} else jax.devices()
        return linear.run(tmp_path, config, devices=devices)

    first = run(10, before)
    kept = jax.tree.map(np.asarray, (first.params, first.opt, first.ema, first.extra))
    second = run(20, after)
    at_10 = restore_parts(tmp_path, 10)
    jax.tree.map(np.testing.assert_array_equal, at_10[:3], (kept[0], kept[2], kept[3]))
    constant = linear.make_config(num_steps=20, optimizer={"schedule": "constant"})
    straight = linear.run(tmp_path / "straight", constant)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), second.params, straight.params)
    kernel = second.params["model"]["linear"]["kernel"]
    assert kernel.sharding.mesh.shape["fsdp"] == after.get("fsdp", 1)


def test_no_warnings_for_whole_checkpoints(trained, caplog):
    caplog.set_level(logging.WARNING)
    restore_parts(trained[0])
    assert "half-written" not in caplog.text


def test_arrays_are_readable_by_orbax_alone(trained):
    with ocp.StandardCheckpointer() as checkpointer:
        weights = checkpointer.restore(trained[0] / "checkpoints" / "20" / "weights")
    assert weights["params"]["model"]["linear"]["kernel"].shape == (linear.FEATURES, linear.OUTPUTS)
