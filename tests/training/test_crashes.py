"""Runs that are killed, checkpoints that are damaged, disks that are full; and which checkpoints stay."""

import contextlib
import errno
import json
import logging
import random
import shutil
import subprocess
import time

import jobs
import linear
import numpy as np
import pytest
import trainings
from orbax.checkpoint._src.path import atomicity, atomicity_defaults

from walt.config import ConfigError
from walt.training import checksums
from walt.training import folder as folder_of_checkpoints
from walt.training.checkpoint import restore_parts, stored_clock
from walt.training.config import SavingConfig
from walt.training.folder import CheckpointError, latest_step
from walt.training.metrics import read_metrics


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def start(workdir, **settings):
    [process] = jobs.start([linear.__file__, str(workdir), json.dumps(settings)], 1)
    return process


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    linear.run(workdir, linear.make_config(num_steps=20))
    return workdir


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_run_killed_at_random_times_ends_as_if_nothing_had_happened(tmp_path):
    settings = dict(num_steps=120, log_every=7, checkpoint_every=15, keep_checkpoints=2)
    draw, kills = random.Random(0), 0
    while True:
        process = start(tmp_path / "run", **settings, seconds_per_batch=0.02)
        known = latest_step(tmp_path / "run") or 0
        while process.poll() is None and (latest_step(tmp_path / "run") or 0) == known:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.4))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()
            break
        process.kill()
        process.communicate()
        kills += 1
    assert kills >= 3
    linear.run(tmp_path / "straight", linear.make_config(**settings))
    trainings.assert_same_runs(tmp_path / "run", tmp_path / "straight")


def test_what_a_run_killed_inside_a_save_leaves_is_cleaned_and_never_loaded(tmp_path):
    workdir, settings = tmp_path / "run", dict(num_steps=24, checkpoint_every=10)
    process = start(workdir, **settings, slow={"save": 60})
    wait_for((tmp_path / "run.save.0").exists, process)
    process.kill()
    process.communicate()
    [half] = (workdir / "checkpoints").glob("10.*")
    assert any(half.rglob("*")) and latest_step(workdir) == 0 and restore_parts(workdir)[4] == 0
    linear.run(workdir, linear.make_config(**settings))
    assert not half.exists() and steps(workdir) == [10, 20, 24]
    linear.run(tmp_path / "straight", linear.make_config(**settings))
    trainings.assert_same_runs(workdir, tmp_path / "straight")


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {
    "a bit of an array": ("weights/**/d/*", flip, "does not hold what was written"),
    "the end of an array": ("training/**/d/*", truncate, r"has \d+ bytes, and \d+ were written"),
    "a file": ("weights/**/d/*", lambda file: file.unlink(), "is missing"),
    "a digit of the clock": ("clock/metadata", flip, "clock/metadata does not hold what was written"),
    "a digit of the config": ("config/metadata", flip, "config/metadata does not hold what was written"),
    "the list itself": ("checksums.json", truncate, "is no list of checksums"),
    "the whole list": ("checksums.json", lambda file: file.unlink(), "checksums.json is missing"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_the_one_before_is_offered(copied, what):
    pattern, harm, said = DAMAGE[what]
    harm(max((copied / "checkpoints" / "20").glob(pattern), key=lambda file: file.stat().st_size))
    message = rf"checkpoints/20 cannot be read: .*{said}.*; it is damaged: move it out of checkpoints to go back to the one before it, of step 10$"
    with pytest.raises(CheckpointError, match=message):
        linear.run(copied, linear.make_config(num_steps=30))
    if not pattern.startswith(("training", "clock")):
        with pytest.raises(CheckpointError, match=message):
            restore_parts(copied)
    assert latest_step(copied) == 20, "nothing is taken silently"
    shutil.rmtree(copied / "checkpoints" / "20")
    assert int(linear.run(copied, linear.make_config(num_steps=12)).step) == 12


@pytest.mark.parametrize("missing", ["weights", "training/commit_success.txt", "commit_success.txt", "."])
def test_a_newest_checkpoint_of_which_a_part_is_missing_is_damaged_and_not_passed_over(copied, missing):
    path = copied / "checkpoints" / "20" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if missing == ".":
        path.mkdir()
    message = (
        "checkpoints/20 cannot be read: .*commit_success.txt (is|are) missing; it is damaged: move it .* of step 10$"
    )
    for use in (restore_parts, lambda workdir: linear.run(workdir, linear.make_config(num_steps=30))):
        with pytest.raises(CheckpointError, match=message):
            use(copied)
    assert restore_parts(copied, 10)[4] == 10
    shutil.rmtree(copied / "checkpoints" / "20")
    assert int(linear.run(copied, linear.make_config(num_steps=12)).step) == 12


def test_a_checkpoint_that_is_deleted_as_a_later_one_appears_is_not_damaged(copied, monkeypatch):
    folder, scan = copied / "checkpoints", folder_of_checkpoints.scan
    (folder / "20").rename(copied / "later")
    (folder / "10" / "commit_success.txt").unlink()

    def meanwhile(workdir):
        found = scan(workdir)
        if (copied / "later").exists():
            (copied / "later").rename(folder / "20")
        return found

    monkeypatch.setattr(folder_of_checkpoints, "scan", meanwhile)
    folder_of_checkpoints.check_newest(copied)


def test_what_a_deletion_has_left_of_an_older_one_is_no_damage(copied, caplog):
    shutil.rmtree(copied / "checkpoints" / "10" / "weights")
    assert restore_parts(copied)[4] == 20
    assert int(linear.run(copied, linear.make_config(num_steps=22)).step) == 22
    assert f"removing {copied / 'checkpoints' / '10'}, which an interruption has left" in caplog.text
    assert not (copied / "checkpoints" / "10").exists()


@pytest.fixture
def as_in_a_bucket(monkeypatch):
    """Orbax writes a save under its name, as it does where folders cannot be renamed at once."""
    for name in ("get_default_temporary_path_class", "get_item_default_temporary_path_class"):
        monkeypatch.setattr(atomicity_defaults, name, lambda *args, **kwargs: atomicity.CommitFileTemporaryPath)
    monkeypatch.setattr(folder_of_checkpoints, "is_in_bucket", lambda path: True)


def test_in_a_bucket_the_mark_tells_what_is_half_written(tmp_path, as_in_a_bucket):
    settings = {"num_steps": 20, "keep_checkpoints": 2}
    linear.run(tmp_path, linear.make_config(**settings))
    folder = tmp_path / "checkpoints"
    assert steps(tmp_path) == [10, 20] and all((folder / name / "checksums.json").exists() for name in ("10", "20"))
    shutil.copytree(folder / "20", folder / "25")
    (folder / "25" / "commit_success.txt").unlink()
    assert latest_step(tmp_path) == 20 and int(linear.run(tmp_path, linear.make_config(num_steps=22)).step) == 22
    assert not (folder / "25").exists()
    (folder / "22" / "weights" / "commit_success.txt").unlink()
    with pytest.raises(
        CheckpointError, match=r"22 cannot be read: weights/commit_success.txt is missing; it is damaged"
    ):
        linear.run(tmp_path, linear.make_config(num_steps=24))


@pytest.mark.parametrize("moved", ["replaced", "proper"])
def test_a_move_that_a_bucket_did_not_finish_costs_no_checkpoint(copied, as_in_a_bucket, moved):
    """It moves file by file, the marks perhaps first: both folders look whole, and one is."""
    folder = copied / "checkpoints"
    shutil.copytree(folder / "20", folder / "20.replaced")
    partial = folder / ("20.replaced" if moved == "replaced" else "20")
    for file in partial.rglob("d/*"):
        file.unlink()
    assert restore_parts(copied)[4] == 20
    assert int(linear.run(copied, linear.make_config(num_steps=22)).step) == 22
    assert latest_step(copied) == 22 and not (folder / "20.replaced").exists()


def test_a_checkpoint_that_the_run_removes_while_another_reads_it(copied, monkeypatch):
    folder, verify = copied / "checkpoints", checksums.verify

    def meanwhile(read, *arguments):
        if read.name == "10":  # the run has saved step 20, and keeps one
            (copied / "later").rename(folder / "20")
            shutil.rmtree(folder / "10")
        return verify(read, *arguments)

    monkeypatch.setattr(checksums, "verify", meanwhile)
    (folder / "20").rename(copied / "later")
    shutil.copytree(folder / "10", copied / "earlier")
    assert restore_parts(copied)[4] == 20
    (folder / "20").rename(copied / "later")
    (copied / "earlier").rename(folder / "10")
    with pytest.raises(CheckpointError, match="checkpoints/10 was removed while it was read"):
        restore_parts(copied, 10)


def test_checkpoints_of_older_versions_have_no_checksums(copied, caplog):
    folder = copied / "checkpoints" / "20"
    (folder / "checksums.json").unlink()
    clock = folder / "clock" / "metadata"
    clock.write_text(
        json.dumps({name: value for name, value in json.loads(clock.read_text()).items() if name != "checksums"})
    )
    assert int(linear.run(copied, linear.make_config(num_steps=22)).step) == 22
    assert "without checksums: nothing was checked" in caplog.text


@contextlib.contextmanager
def mounted(folder):
    """A file system of 2 MB, where that is permitted."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "walt-test", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("this user may mount nothing")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Filling(linear.LinearLoader):
    """Fills the disk before the batch of one step, once step 10 is saved, and makes room again before that of another."""

    def __init__(self, workdir, file, full, free):
        super().__init__()
        self.workdir, self.file, self.full, self.free, self.hang = workdir, file, full, free, self.fill

    def fill(self, step):
        if step == self.full:
            wait_until(lambda: latest_step(self.workdir) == 10)
            with contextlib.suppress(OSError), self.file.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        elif step == self.free:
            self.file.unlink()
        elif self.full < step < self.free:
            time.sleep(0.3)  # a save needs time to fail


@pytest.mark.parametrize("reaction", ["stop", "go_on"])
def test_a_disk_that_is_full(tmp_path, caplog, reaction):
    with mounted(tmp_path / "disk"):
        workdir = tmp_path / "disk" / "run"
        config = linear.make_config(num_steps=40, saving=SavingConfig(disk_full=reaction), log_every=100)
        loader = Filling(workdir, tmp_path / "disk" / "filler", 15, 25)
        if reaction == "stop":
            with pytest.raises(CheckpointError, match=r"the disk is full: (.|\n)*; the last good one is of step 10"):
                linear.run(workdir, config, loader=loader)
            assert latest_step(workdir) == 10 and not read_metrics(workdir)
            return
        linear.run(workdir, config, loader=loader)
        assert "the run goes on, and tries again with the next one" in caplog.text
        assert steps(workdir) == [10, 30, 40]
        assert read_metrics(workdir)[-1]["failed_saves"] == 1
        linear.run(tmp_path / "straight", linear.make_config(num_steps=40))
        for a, b in zip(restore_parts(workdir)[:1], restore_parts(tmp_path / "straight")[:1]):
            np.testing.assert_array_equal(a["model"]["linear"]["kernel"], b["model"]["linear"]["kernel"])


@pytest.fixture
def failing(monkeypatch):
    """Saves of some steps end in an error of the system."""

    def fail(steps, number=errno.ENOSPC):
        async def finalize(self):
            if self.get_final().name in map(str, steps):
                raise OSError(number, {errno.ENOSPC: "No space left on device"}.get(number, "Input/output error"))
            return await original(self)

        original = atomicity.AtomicRenameTemporaryPath.finalize
        monkeypatch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", finalize)

    return fail


def test_the_last_checkpoint_of_a_run_is_never_done_without(tmp_path, failing):
    failing([10, 20])
    with pytest.raises(CheckpointError, match="the disk is full"):
        linear.run(tmp_path, linear.make_config(saving=SavingConfig(disk_full="go_on")))
    assert steps(tmp_path) == [0]


@pytest.mark.parametrize(("reaction", "number"), [("go_on", errno.ENOSPC), ("stop", errno.EIO)])
def test_a_last_state_that_cannot_be_saved_does_not_cost_the_one_it_replaces(
    tmp_path, failing, capsys, reaction, number
):
    def finish(state):
        failing([4], number)
        return state

    config = linear.make_config(num_steps=4, saving=SavingConfig(disk_full=reaction))
    with pytest.raises(CheckpointError, match=r"could not be written.*; the last good one is of step 4"):
        linear.run(tmp_path, config, on_finish=finish)
    assert (tmp_path / "checkpoints" / "4").is_dir() and not (tmp_path / "checkpoints" / "4.replaced").exists()
    assert restore_parts(tmp_path)[4] == 4 and not stored_clock(tmp_path).finished
    assert "which is saved" not in capsys.readouterr().err


def test_another_error_fails_the_run_whatever_is_said_of_full_disks_and_soon(tmp_path, failing):
    failing([10], errno.EIO)
    loader = linear.LinearLoader(seconds=0.02)
    with pytest.raises(CheckpointError, match=r"Input/output error.*; the last good one is of step 0"):
        linear.run(
            tmp_path,
            linear.make_config(num_steps=300, checkpoint_every=10, saving=SavingConfig(disk_full="go_on")),
            loader=loader,
        )
    assert max(loader.asked) < 100


class Measured:
    """An evaluator whose figure is told beforehand."""

    name, every, takes_long = "heldout", 10, False

    def __init__(self, figures):
        self.figures = figures

    def __call__(self, state, step):
        return {"loss": self.figures.get(step, 9.0)}


def test_the_best_ones_are_kept_also_by_a_run_that_is_resumed(tmp_path):
    def run(num_steps, **saving):
        config = linear.make_config(num_steps=num_steps, keep_checkpoints=1, saving=SavingConfig(**saving))
        linear.run(tmp_path, config, evaluators=[Measured({10: 1.0, 20: 3.0, 30: 2.0, 40: float("nan")})])

    run(30, keep_best=2)
    run(60, keep_best=2)
    assert steps(tmp_path) == [10, 30, 60]
    run(70, keep_best=1, best_is_highest=True)
    assert steps(tmp_path) == [60, 70]


def test_one_of_every_so_many_hours_is_kept(tmp_path):
    config = linear.make_config(num_steps=60, keep_checkpoints=1, saving=SavingConfig(keep_every_hours=1 / 3600))
    linear.run(tmp_path, config, loader=linear.LinearLoader(seconds=0.05))
    kept = steps(tmp_path)
    assert 60 in kept and 3 <= len(kept) < 7, kept


def test_a_figure_that_nothing_measures_keeps_nothing_and_that_is_said(tmp_path, caplog):
    def config(name):
        return linear.make_config(num_steps=30, keep_checkpoints=1, saving=SavingConfig(keep_best=2, best_metric=name))

    with pytest.raises(ConfigError, match=r"best_metric is 'held/loss', but nothing named 'held' .*; there is heldout"):
        linear.run(tmp_path, config("held/loss"), evaluators=[Measured({})])
    assert not (tmp_path / "checkpoints").exists()
    linear.run(tmp_path, config("heldout/los"), evaluators=[Measured({})])
    assert steps(tmp_path) == [30]
    assert "no checkpoint is kept for its heldout/los, which is not measured; there is heldout/loss" in caplog.text
    never = Measured({})
    never.every = 7
    with pytest.raises(
        ConfigError, match="measured every 7 steps and a checkpoint written every 10, so none of 30 steps has both"
    ):
        linear.run(tmp_path / "other", config("heldout/loss"), evaluators=[never])


def test_settings_that_make_no_sense_are_named():
    with pytest.raises(ConfigError, match=r"saving.keep_every_hours must be positive"):
        SavingConfig(keep_every_hours=0.0)
    with pytest.raises(ConfigError, match=r"saving.keep_best must not be negative"):
        SavingConfig(keep_best=-1)


def test_nothing_is_said_of_checkpoints_that_are_whole(copied, caplog):
    caplog.set_level(logging.WARNING)
    restore_parts(copied)
    assert not caplog.text
