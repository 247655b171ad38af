"""The quickstart job itself, with seconds in place of minutes."""

import json

import pytest

from walt.config import ConfigError
from walt.experiment.quickstart import QuickstartConfig, run

TINY = {
    "clips": 8,
    "heldout": 16,
    "games": ("boxing", "freeway"),
    "autoencoder_seconds": 1.0,
    "transformer_seconds": 1.0,
    "seeds": 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("from_scratch", [False, True])
def test_leaves_report_videos_model_and_figures_and_runs_again(tmp_path, capsys, from_scratch):
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
    steps = (output / "progress.json").read_text()
    run(config)
    assert json.loads((output / "progress.json").read_text())["decisions"] == json.loads(steps)["decisions"]
    with pytest.raises(ConfigError, match="seeds: 2 -> 3"):
        run(QuickstartConfig(output=str(output), from_scratch=from_scratch, **{**TINY, "seeds": 3}))


def test_refuses_times_that_are_not_positive():
    with pytest.raises(ConfigError, match="transformer_seconds must be positive"):
        QuickstartConfig(output="x", transformer_seconds=0.0)
