"""The command line, from prompts to files."""

import dataclasses

import numpy as np
import pytest

from walt import command, sample
from walt.data import media
from walt.evaluation.clips import Clips
from walt.evaluation.source import read_generated
from walt.generation.bundle import write_bundle
from walt.generation.record import RecordError, read_record

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
        (["--prompt=x", "--output=out.avi"], "must end in .mp4, .webm, .gif, .webp, .png"),
        (["--prompt=x", "--output=out.mp4", "--fps=-1"], "--fps must be"),
        (["--prompt=x", "--output=out.mp4", "--scale=0"], "--scale must be"),
        (["--prompt=x", "--output=out.mp4", "--steps=many"], "steps"),
        (["--prompt=x", "--output=out.png", "--captions"], "--captions is for videos"),
        (["--prompt=x", "--prompts_file=y", "--output=out.mp4"], "give one of them"),
        (["--like=x.mp4", "--rewriter=rules:x", "--output=out.mp4"], "--rewriter is for new prompts"),
        (["--prompt=x", "--other_model", "--output=out.mp4"], "--other_model is for --like"),
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


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp"])
def test_like_makes_the_identical_file_again(checkpoint, tmp_path, suffix):
    first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
    settings = ["--seed=5", "--steps=3", "--guidance=3", "--solver=dpmpp_2m", "--num_frames=4", "--fps=6", "--scale=2"]
    run(checkpoint, f"--prompt=a (red ball:1.2) {BALL}", "--negative_prompt=boxes", f"--output={first}", *settings)
    run(checkpoint, f"--like={first}", f"--output={again}", "--scale=2")
    assert again.read_bytes() == first.read_bytes()
    run(checkpoint, f"--like={first}", "--seed=6", f"--output={again}", "--scale=2")
    assert again.read_bytes() != first.read_bytes()
    old, new = read_record(first), read_record(again)
    assert new == dataclasses.replace(old, seed=6) and new.negative_prompt == "boxes"
    run(checkpoint, f"--like={first}", f"--prompt={BOX}", f"--output={again}", "--scale=2")
    assert read_record(again) == dataclasses.replace(old, prompts=(BOX,), given=(BOX,))


def test_each_of_several_videos_can_be_made_again_alone(checkpoint, tmp_path):
    run(checkpoint, f"--prompt={BALL}", f"--prompt={BOX}", f"--output={tmp_path}/out.webp", "--scale=1")
    run(checkpoint, f"--like={tmp_path}/out_1.webp", f"--output={tmp_path}/again.webp", "--scale=1")
    assert read_record(tmp_path / "again.webp") == read_record(tmp_path / "out_1.webp")
    frames = [media.read_image(tmp_path / name).astype(int) for name in ("again.webp", "out_1.webp", "out_0.webp")]
    assert np.abs(frames[0] - frames[1]).max() <= 1 < np.abs(frames[0] - frames[2]).max()


def test_like_refuses_another_model_unless_it_is_meant(checkpoint, tiny_bundle, tmp_path):
    run(checkpoint, f"--prompt={BALL}", f"--output={tmp_path}/out.gif", "--seed=3")
    sampler = {**tiny_bundle.sampler, "spacing": "leading"}
    write_bundle(dataclasses.replace(tiny_bundle, sampler=sampler), tmp_path / "other")
    other = [f"--checkpoint={tmp_path}/other", f"--like={tmp_path}/out.gif", f"--output={tmp_path}/again.gif"]
    with pytest.raises(RecordError, match="was made by another model"):
        run(*other)
    run(*other, "--other_model")
    assert read_record(tmp_path / "again.gif").seed == 3


def test_prompts_from_a_file_written_out_by_rules(checkpoint, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text(f"{BALL}\n\n  {BOX} \n")
    (tmp_path / "rules.json").write_text('{"replace": {"ball": "round ball"}}')
    flags = [f"--prompts_file={tmp_path}/prompts.txt", f"--rewriter=rules:{tmp_path}/rules.json", "--batch_size=1"]
    run(checkpoint, *flags, f"--output={tmp_path}/out.gif")
    record = read_record(tmp_path / "out_0.gif")
    assert record.given == (BALL,) and record.prompts == ("a red round ball, moving left",)
    assert record.rewriter == "rules:rules.json" and record.row == 0
    assert f"{BALL!r} is written out as {record.prompts[0]!r}" in capsys.readouterr().out
    assert read_record(tmp_path / "out_1.gif").prompts == (BOX,)
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(command.CommandError, match="holds no prompt"):
        run(checkpoint, f"--prompts_file={tmp_path}/prompts.txt", f"--output={tmp_path}/out.gif")


def test_prompts_may_hold_commas_and_equal_signs():
    rest, prompts = sample.split_prompts(["walt sample", "--prompt=a, b=c", "--output=o.mp4", "--prompt", "d"])
    assert prompts == ["a, b=c", "d"] and rest == ["walt sample", "--prompt=a, b=c", "--output=o.mp4"]


def test_tasks_take_their_files(tmp_path, checkpoint, capsys):
    out = tmp_path / "out.mp4"
    media.write_video(tmp_path / "in.mp4", np.zeros((5, 16, 16, 3), np.uint8), 12.5, scale=1)
    video = f"--video={tmp_path / 'in.mp4'}"
    run(
        checkpoint,
        "--task=edit",
        video,
        "--strength=0.5",
        f"--prompt={BALL}",
        f"--output={out}",
        "--scale=1",
        "--steps=2",
    )
    made = media.read_video(out)[0]
    assert made.shape == (5, 16, 16, 3)
    run(checkpoint, "--task=edit", video, f"--like={out}", f"--output={tmp_path / 'again.mp4'}", "--scale=1")
    np.testing.assert_array_equal(media.read_video(tmp_path / "again.mp4")[0], made)
    run(checkpoint, "--task=stream", "--num_frames=12", f"--prompt={BALL}", f"--output={out}", "--scale=2", "--steps=2")
    assert media.read_video(out)[0].shape == (12, 32, 32, 3)
    assert "12 frames, conditioned by replacement" in capsys.readouterr().out
    (tmp_path / "board.json").write_text('{"shots": [{"prompt": "a red ball moves left", "num_frames": 7}]}')
    run(
        checkpoint,
        "--task=storyboard",
        f"--storyboard={tmp_path / 'board.json'}",
        f"--output={out}",
        "--scale=1",
        "--steps=2",
    )
    assert len(media.read_video(out)[0]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=animte"], "--task must be one of .* did you mean 'animate'"),
        (["--task=animate"], "--image is missing, which --task=animate needs"),
        (["--video=x.mp4"], "--video is not for --task=generate"),
        (["--task=edit", "--video=x.mp4", "--factor=2"], "--factor is not for --task=edit"),
        (["--task=keyframes"], "--keyframes is missing"),
        (["--task=storyboard"], "--storyboard is missing"),
        (["--task=loop", "--cascade=x"], "--task=loop is of one model"),
    ],
)
def test_flags_that_a_task_does_not_take(arguments, message):
    with pytest.raises(command.CommandError, match=message):
        run("--prompt=x", "--output=out.mp4", *arguments)
