import subprocess
import sys
import types
from pathlib import Path

import pytest

from walt import command, prepare
from walt.data.recipes import atari, common, tfds, video_folder


def test_flags_become_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for module in (atari, video_folder, tfds):
        monkeypatch.setattr(module, "prepare", asked.append)
    prepare.main(["walt prepare", "atari", "--output=x", "--games=pong,boxing", "--clips=7", "--heldout=2"])
    prepare.main(["walt prepare", "video_folder", "--output=x", "--input=y", "--fps=12.5", "--skip_bad"])
    prepare.main(["walt prepare", "tfds", "--output=x", "--name=ucf101"])
    assert asked == [
        atari.AtariConfig(output="x", games=("pong", "boxing"), clips=7, heldout=2),
        video_folder.VideoFolderConfig(output="x", input="y", fps=12.5, skip_bad=True),
        tfds.TfdsConfig(output="x", name="ucf101"),
    ]


def test_options_are_flags() -> None:
    """Recipes stand below walt.command and cannot import its `flag`, whose metadata `command.parse` reads."""
    for default in ({}, {"default": 3}):
        option, flag = common.option("Help.", **default), command.flag("Help.", **default)
        assert (option.default, option.metadata) == (flag.default, flag.metadata)


@pytest.mark.parametrize(
    ("size", "hints"),
    [
        ((17, 64, 128), ""),
        ((1, 8, 8), ""),
        ((16, 64, 64), "nearest: --num_frames=17 (not 16)."),
        ((3, 4, 60), "nearest: --num_frames=5 (not 3), --height=8 (not 4), --width=64 (not 60)."),
        ((18, 65, 1), "nearest: --num_frames=17 (not 18), --height=64 (not 65), --width=8 (not 1)."),
    ],
)
def test_a_size_that_fits_no_shipped_autoencoder(
    size: tuple[int, int, int], hints: str, capsys: pytest.CaptureFixture
) -> None:
    common.warn_of_sizes(types.SimpleNamespace(**dict(zip(("num_frames", "height", "width"), size, strict=True))))
    printed = capsys.readouterr().out
    assert (printed.startswith("warning: ") and printed.endswith(hints + "\n")) if hints else not printed


def test_latents_are_the_job_of_the_experiment_room(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setitem(sys.modules, "walt.experiment.latents", types.SimpleNamespace(prepare=asked.update))
    monkeypatch.setitem(sys.modules, "walt.experiment", types.SimpleNamespace())
    prepare.main(["walt prepare", "latents", "--output=o", "--input=i", "--autoencoder=mini"])
    assert asked == {
        "autoencoder": "mini",
        "input": "i",
        "output": "o",
        "limit": 0,
        "low_resolution": 1,
        "max_bad_records": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["atarl"], "there is no recipe 'atarl'; the recipes are atari, video_folder"),
        (["atari"], "--output is missing"),
        (["atari", "--output=x", "--clip=3"], "clip"),
        (["atari", "--output=x", "--clips=many"], "clips"),
        (["latents", "--output=x", "--input=y"], "--autoencoder is missing"),
    ],
)
def test_bad_command_lines(arguments: list[str], problem: str) -> None:
    with pytest.raises(command.CommandError, match=problem):
        prepare.main(["walt prepare", *arguments])


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    run = subprocess.run(
        [sys.executable, "-m", "walt.prepare", "video_folder", f"--input={tmp_path}", f"--output={tmp_path}"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.strip().count("\n") == 0 and "holds no video or image file" in run.stderr
