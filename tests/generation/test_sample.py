"""The command line, from prompts to files."""

import numpy as np
import pytest

from walt import command, sample
from walt.data import media
from walt.evaluation.clips import Clips
from walt.evaluation.source import read_generated
from walt.generation.bundle import write_bundle

BALL, BOX = "a red ball, moving left", "a blue box moves right"


@pytest.fixture(scope="module")
def checkpoint(tiny_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(tiny_bundle, path)
    return f"--checkpoint={path}"


def run(*arguments):
    sample.main(["walt sample", *map(str, arguments)])


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webm"])
def test_one_prompt_one_file(checkpoint, tmp_path, capsys, suffix):
    run(checkpoint, f"--prompt={BALL}", f"--output={tmp_path / 'new' / ('out' + suffix)}", "--scale=2")
    video, fps = media.read_video(tmp_path / "new" / f"out{suffix}")
    assert video.shape == (5, 32, 32, 3) and abs(fps - 12.5) < 0.1
    printed = capsys.readouterr().out
    assert "transformer" in printed and "4 steps, guidance 2, seed 0" in printed and f"out{suffix}" in printed


def test_several_prompts_several_files(checkpoint, tmp_path):
    run(checkpoint, f"--prompt={BALL}", "--prompt", BOX, f"--output={tmp_path}/out.gif", "--num_frames=3", "--scale=1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out_0.gif", "out_1.gif"]
    assert media.read_video(tmp_path / "out_0.gif")[0].shape == (3, 16, 16, 3)


def test_what_evaluation_reads_is_written_beside_the_videos(checkpoint, tmp_path):
    prompts = [f"--prompt={prompt}" for prompt in (BALL, BOX)]
    run(checkpoint, *prompts, f"--output={tmp_path}/out.mp4", "--scale=1", "--captions")
    heldout = Clips(np.zeros((2, 5, 16, 16, 3), np.uint8), ("ball", "box"))
    found = read_generated(tmp_path, heldout, {BALL: "ball", BOX: "box"})
    assert found.videos.shape == (2, 5, 16, 16, 3) and tuple(found.labels) == ("ball", "box")


def test_contact_sheet(checkpoint, tmp_path, capsys):
    run(checkpoint, f"--prompt={BALL}", f"--prompt={BOX}", f"--output={tmp_path}/sheet.png")
    assert np.std(media.read_image(tmp_path / "sheet.png")) > 5
    assert f"{BALL}; {BOX}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=out.mp4"], "--prompt is missing"),
        (["--prompt=x"], "--output is missing"),
        (["--prompt=x", "--output=out.avi"], "must end in .mp4, .webm, .gif, .png"),
        (["--prompt=x", "--output=out.mp4", "--fps=-1"], "--fps must be"),
        (["--prompt=x", "--output=out.mp4", "--scale=0"], "--scale must be"),
        (["--prompt=x", "--output=out.mp4", "--steps=many"], "steps"),
        (["--prompt=x", "--output=out.png", "--captions"], "--captions is for videos"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(command.CommandError, match=message):
        run(*arguments)


def test_the_output_is_tried_before_the_model_is_loaded(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    (tmp_path / "file").touch()
    for output, message in (("out.mp4", "is a folder"), ("file/out.mp4", "takes no files")):
        with pytest.raises(command.CommandError, match=message):
            run("--checkpoint=nowhere", "--prompt=x", f"--output={tmp_path / output}")


def test_prompts_may_hold_commas_and_equal_signs():
    rest, prompts = sample.split_prompts(["walt sample", "--prompt=a, b=c", "--output=o.mp4", "--prompt", "d"])
    assert prompts == ["a, b=c", "d"] and rest == ["walt sample", "--prompt=a, b=c", "--output=o.mp4"]
