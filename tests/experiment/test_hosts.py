"""Several processes run the commands together: training, sampling and evaluation give what one process gives."""

import json
import shutil

import jobs
import numpy as np
import pytest
import tiny

from walt.data import media


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with clips, an autoencoder, latents, and a config that trains on them."""
    return tiny.make(tmp_path_factory.mktemp("data"))


def training(data, workdir, *arguments):
    return ["-m", "walt.train", f"--config={data / 'config.py'}", f"--workdir={workdir}", *arguments]


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(data):
    """Two work directories: of one process, and of two; at the same time, since both wait more than they compute."""
    started = {count: jobs.start(training(data, data / f"run{count}"), count) for count in (1, 2)}
    for processes in started.values():
        for process in jobs.ended(processes, 200):
            assert process.status == 0, process.errors
    return data / "run1", data / "run2"


@pytest.fixture(scope="module")
def alone(trained):
    return trained[0]


@pytest.fixture(scope="module")
def together(trained):
    return trained[1]


def check_like_alone(workdir, alone):
    ours, theirs = metrics(workdir), metrics(alone)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for a, b in zip(ours, theirs):
        for name in a.keys() & {"loss", "l2_grads", "l2_params", "heldout/loss"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5 if a["step"] == 1 else 1e-4, err_msg=name)
    assert len({record["step"] for record in ours if "loss" in record}) == 20
    assert any("heldout/loss" in record for record in ours) and any("samples/seconds" in record for record in ours)


def test_two_processes_train_like_one(together, alone):
    check_like_alone(together, alone)


MEASURED = """

unmeasured = get_config


def get_config(variant=""):
    config = unmeasured(variant)
    config.evaluators.look = {"every": 20, "protocol": "efficientnet-frames", "samples": 9, "batch_size": 4}
    return config
"""


@pytest.mark.slow
def test_two_processes_measure_while_they_train(data, alone, together, tmp_path):
    """What was trained without an evaluator goes on with one: both measure the same samples."""
    (measured := tmp_path / "config.py").write_text((data / "config.py").read_text() + MEASURED)
    found = []
    for processes, run in ((1, alone), (2, together)):
        workdir = shutil.copytree(run, tmp_path / str(processes))
        jobs.run(["-m", "walt.train", f"--config={measured}", f"--workdir={workdir}"], processes)
        found += [record for record in metrics(workdir) if "look/seconds" in record]
    theirs, ours = found
    assert ours["look/num_generated"] == 9 and ours["look/num_real"] == 8
    assert ours["look/efficientnet_distance"] == pytest.approx(theirs["look/efficientnet_distance"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "mesh"),
    [
        (1, ["data=4"]),
        (1, ["data=1", "fsdp=4"]),
        (2, ["data=4", "context=2"]),
        (2, ["data=2", "fsdp=2", "tensor=2"]),
    ],
    ids=str,
)
def test_four_processes_train_like_one(data, alone, tmp_path, devices, mesh):
    axes = [f"--config.training.mesh.{axis}" for axis in mesh]
    jobs.run(training(data, tmp_path / "run", *axes), 4, devices=devices, timeout=400)
    check_like_alone(tmp_path / "run", alone)


def sample(checkpoint, output, processes, *flags):
    prompts = [f"--prompt={color} noise" for color in ("red", "blue", "red")]
    command = ["-m", "walt.sample", f"--checkpoint={checkpoint}", f"--output={output}", "--scale=1", *prompts]
    ended = jobs.run([*command, *flags], processes)
    assert [("wrote" in process.output) for process in ended] == [True] + [False] * (processes - 1)
    return np.stack([media.read_video(output.with_stem(f"{output.stem}_{i}"))[0] for i in range(3)]).astype(int)


@pytest.mark.slow
def test_two_processes_sample_like_one(alone, tmp_path):
    one = sample(alone, tmp_path / "one.webm", 1)
    for name, flags in {"rows": [], "weights": ["--mesh=fsdp=2"], "heads": ["--mesh=tensor=2"]}.items():
        two = sample(alone, tmp_path / f"{name}.webm", 2, *flags)
        assert one.shape == two.shape and np.abs(one - two).max() <= 1


@pytest.mark.slow
def test_two_processes_evaluate_like_one(data, alone, tmp_path):
    command = ["-m", "walt.evaluate", f"--real={data / 'clips'}"]
    for what in (f"--autoencoder={alone}", f"--generated={data / 'clips'}"):
        results = []
        for processes in (1, 2):
            result = tmp_path / f"{processes}.json"
            ended = jobs.run([*command, what, f"--json={result}"], processes)
            assert ["Result" in process.output for process in ended] == [True, False][:processes]
            results.append(json.loads(result.read_text()))
        check_same(*results)


@pytest.mark.slow
def test_two_processes_measure_samples_like_one(data, alone, tmp_path):
    """Each makes its share of the samples and computes its share of the features, and finds what was made before; the report shows all."""
    flags = ["--protocol=efficientnet-frames", "--num_samples=9", "--steps=2", "--intervals=0"]
    command = ["-m", "walt.evaluate", f"--real={data / 'clips'}", f"--checkpoint={alone}", *flags]
    results = []
    for run, processes in enumerate((1, 2, 2)):
        result, page = tmp_path / f"{run}.json", tmp_path / f"{run}.html"
        cache = f"--cache={tmp_path / str(processes)}"
        ended = jobs.run([*command, cache, f"--json={result}", f"--report={page}"], processes)
        assert ["Result" in process.output for process in ended] == [True, False][:processes]
        assert page.read_text().count("data:image") >= 9
        results.append(json.loads(result.read_text()))
    assert results[1] == results[2]
    one, two = (result["efficientnet_distance"] for result in results[:2])
    assert one == pytest.approx(two, rel=5e-3) and results[0]["card"] == results[1]["card"]


def check_same(ours, theirs):
    """The same figures, up to rounding."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            check_same(ours[name], theirs[name])
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-3)
    else:
        assert ours == theirs


@pytest.mark.slow
def test_a_command_that_is_refused_in_one_process_ends_in_all(data, tmp_path):
    own = {1: ["--config.training.num_steps=-1"]}
    command = training(data, tmp_path / "run")
    timeouts = [
        "--initialization_timeout=60",
        "--heartbeat_timeout=60",
    ]  # given as flags, as the place of the process is
    first, second = jobs.ended(jobs.start(command, 2, flags=timeouts, own=own), 100)
    assert second.status == 1 and "num_steps" in second.errors and "Traceback" not in second.errors
    assert first.status == 1 and "process 1 of 2 failed: " in first.errors and "Traceback" not in first.errors
    assert max(first.seconds, second.seconds) < 15


@pytest.mark.slow
def test_another_number_of_hosts_goes_on_where_the_mesh_allows_it(data, together, tmp_path):
    """What two processes have saved, one goes on with; a mesh that names another number of devices is refused at once, everywhere."""
    shutil.copytree(together, tmp_path / "run")
    jobs.run(training(data, tmp_path / "run", "--config.training.num_steps=22"), 1)
    assert metrics(tmp_path / "run")[-1]["step"] == 22
    command = training(data, tmp_path / "run", "--config.training.mesh.data=3")
    for process in jobs.ended(jobs.start(command, 2), 100):
        assert process.status == 1 and "does not fit 2 devices" in process.errors
