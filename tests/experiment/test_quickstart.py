"""The quickstart job itself, with seconds in place of minutes."""

import dataclasses
import json

import jax
import pytest

import walt
from walt.config import ConfigError
from walt.experiment.progress import Progress
from walt.experiment.quickstart import QuickstartConfig, run
from walt.quickstart import Arguments

TINY = {
    "clips": 8,
    "heldout": 16,
    "games": ("boxing", "freeway"),
    "autoencoder_seconds": 1.0,
    "transformer_seconds": 1.0,
    "seeds": 2,
}


@pytest.fixture
def one_device(monkeypatch):
    """As on a user's machine: the batch of stage 1 does not divide over the suite's eight devices."""
    device = jax.devices()[0]
    monkeypatch.setattr(jax, "devices", lambda: [device])


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [False, True])
def test_leaves_report_videos_model_and_figures_and_is_then_left_as_it_is(tmp_path, capsys, one_device, from_scratch):
    config = QuickstartConfig(output=str(tmp_path / "run"), from_scratch=from_scratch, **TINY)
    figures = run(config)
    output = tmp_path / "run"
    written = json.loads((output / "metrics.json").read_text())
    required = {"heldout_psnr", "prompt_accuracy", "seconds_total", "seconds_by_stage", "peak_memory_gb"}
    assert required <= set(written) and written["prompt_accuracy"] == figures["prompt_accuracy"]
    assert (
        len(list((output / "videos").glob("*.mp4"))) == 4 and (output / "videos" / "contact_sheet.png").stat().st_size
    )
    assert (output / "bundle" / "walt.json").exists()
    page = (output / "report.html").read_text()
    assert "Stage 2" in page and 'src="http' not in page and 'href="http' not in page
    printed = capsys.readouterr().out
    assert all(str(output / name) in printed for name in ("report.html", "videos", "bundle", "metrics.json"))
    assert list(written["seconds_by_stage"])[-1] == "write report"
    assert written["seconds_total"] == pytest.approx(sum(written["seconds_by_stage"].values()), abs=0.1)
    assert walt.load(output / "bundle").fps == 15.0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert run(config) == written
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == before
    assert printed.endswith(capsys.readouterr().out.lstrip()), "the results are printed again, and nothing else"
    with pytest.raises(ConfigError, match="seeds: 2 -> 3"):
        run(QuickstartConfig(output=str(output), from_scratch=from_scratch, **{**TINY, "seeds": 3}))


@pytest.mark.parametrize(
    ("mistake", "problem"),
    [
        ({"clips": 4}, r"clips must be at least 1 per game \(8\), got 4"),
        ({"games": ("boxing", "fishing_darby")}, "no game 'fishing_darby'; did you mean 'fishing_derby'"),
        ({"autoencoder": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_a_mistake_leaves_the_folder_free_for_the_right_arguments(tmp_path, mistake, problem):
    pytest.importorskip("ale_py", reason="the atari recipe needs the extra `demo`")
    with pytest.raises(ValueError, match=problem):
        run(QuickstartConfig(output=str(tmp_path / "run"), **mistake))
    assert not (tmp_path / "run").exists()


def test_a_finished_folder_is_left_as_it_is_and_its_results_are_printed_again(tmp_path, capsys):
    config = QuickstartConfig(output=str(tmp_path), **TINY)
    progress = Progress(tmp_path, {name: value for name, value in vars(config).items() if name != "output"})
    with progress.stage("write report"):
        (tmp_path / "report.html").touch()
        for folder in ("videos", "bundle"):
            (tmp_path / folder).mkdir()
    bar = {"passed": False, "title": "Prompt accuracy", "shown": "50%", "required": "≥ 80%"}
    figures = {"bars": [bar], "prompts": ["a game of Boxing"], "seconds_total": 90.0, "prompt_accuracy": 0.5}
    (tmp_path / "metrics.json").write_text(json.dumps(figures))
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.iterdir())
    capsys.readouterr()
    assert run(config) == figures
    printed = capsys.readouterr().out
    assert "MISS Prompt accuracy: 50% (required ≥ 80%)" in printed and "1.5 minutes in all" in printed
    assert str(tmp_path / "report.html") in printed and "--prompt='a game of Boxing'" in printed
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer_seconds": 0.0}, "transformer_seconds must be positive"),
        ({"seeds": 1}, "seeds must be at least 2, since diversity compares samples of one prompt; got 1"),
        ({"heldout": 15}, "heldout must be at least 16, since a classifier is .* every game; got 15"),
    ],
)
def test_refuses_what_would_fail_at_the_end(change, message):
    with pytest.raises(ConfigError, match=message):
        QuickstartConfig(output="x", **change)


def test_the_command_has_the_defaults_of_the_job():
    job = {field.name: field.default for field in dataclasses.fields(QuickstartConfig)}
    flags = {field.name: field.default for field in dataclasses.fields(Arguments) if field.default is not None}
    del flags["output"]  # the job has none
    assert flags == {name: job[name] for name in flags}
