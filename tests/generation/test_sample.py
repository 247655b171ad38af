"""The command line, from prompts to files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from walt import command, sample
from walt.data import media
from walt.evaluation.clips import Clips
from walt.evaluation.source import read_generated
from walt.generation.bundle import write_bundle
from walt.generation.record import RecordError, read_record
from walt.generation.shots import Shot

from .conftest import of_frames

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
    out, again = tmp_path / "out.mp4", tmp_path / "again.mp4"
    media.write_video(tmp_path / "in.mp4", np.zeros((5, 16, 16, 3), np.uint8), 12.5, scale=1)
    media.write_video(tmp_path / "other.mp4", np.full((5, 16, 16, 3), 99, np.uint8), 12.5, scale=1)
    video, scale = f"--video={tmp_path / 'in.mp4'}", "--scale=1"
    run(checkpoint, "--task=edit", video, "--strength=0.5", f"--prompt={BALL}", f"--output={out}", scale, "--steps=2")
    assert media.read_video(out)[0].shape == (5, 16, 16, 3)
    run(checkpoint, video, f"--like={out}", f"--output={again}", scale)
    assert again.read_bytes() == out.read_bytes() and "is another than" not in capsys.readouterr().out
    run(checkpoint, f"--video={tmp_path / 'other.mp4'}", f"--like={out}", f"--output={again}", scale)
    assert again.read_bytes() != out.read_bytes()
    assert f"video is another than the one that {out} was made with" in capsys.readouterr().out
    for flags, message in (
        ([], "--video is missing, which --task=edit needs"),
        ([video, "--task=vary"], "was made by --task=edit, not by --task=vary"),
        ([video, "--factor=2"], "--factor is not for --task=edit"),
    ):
        with pytest.raises(command.CommandError, match=message):
            run(checkpoint, f"--like={out}", f"--output={again}", *flags)


def test_another_factor_makes_another_rate(longer, files):
    out, again, video = files / "out.mp4", files / "again.mp4", f"--video={files}/in.mp4"
    run(longer, "--task=interpolate", video, "--factor=2", f"--prompt={BALL}", "--steps=1", f"--output={out}")
    assert read_record(out).fps == 25.0
    run(longer, f"--like={out}", video, "--factor=4", f"--output={again}")
    assert (read_record(again).fps, read_record(again).num_frames) == (50.0, 13)


def test_like_repeats_what_was_made_without_a_rate(longer, files):
    """Files of older versions, whose clips were taken as they were."""
    out, again, video = files / "out.mp4", files / "again.mp4", f"--video={files}/in.mp4"
    run(longer, "--task=interpolate", video, "--factor=2", f"--prompt={BALL}", "--steps=1", f"--output={out}")
    record = dataclasses.replace(read_record(out), options={"factor": 2})
    media.write_video(out, np.zeros((17, 16, 16, 3), np.uint8), 25.0, note=record.to_json())
    run(longer, f"--like={out}", video, f"--output={again}")
    assert read_record(again).options == {"factor": 2} and read_record(again).num_frames == 17


@pytest.fixture(scope="module")
def longer(tiny, tiny_bundle, tmp_path_factory):
    """A model of three latent frames, 9 pictures, which can make transitions."""
    path = tmp_path_factory.mktemp("bundles") / "longer"
    write_bundle(of_frames(3, tiny, tiny_bundle), path)
    return f"--checkpoint={path}"


@pytest.fixture
def files(tmp_path):
    """What tasks are given."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    media.write_video(tmp_path / "in.mp4", pixels, 25.0)
    for name, picture in (("a", pixels[0]), ("b", pixels[1])):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    shots = [{"prompt": BALL, "num_frames": 7}, {"prompt": BOX, "seconds": 0.4, "transition": "morph", "seed": 2}]
    (tmp_path / "plain.json").write_text(json.dumps({"shots": shots}))
    (tmp_path / "pictures.json").write_text(json.dumps({"shots": [shots[0], {**shots[1], "image": "a.png"}]}))
    return tmp_path


TOLD = {
    # flags, files to give again, and what the record says: frames, inputs, options
    "generate": (["--reuse=0.5"], False, (9, set(), {"reuse": 0.5})),
    "keyframes": (["--keyframes={}/a.png:0,{}/b.png:8"], True, (9, {"keyframes.0", "keyframes.8"}, {})),
    "stream": (
        ["--num_frames=14", f"--prompt={BOX}", "--context_noise=0.3"],
        False,
        (14, set(), {"context_noise": 0.3}),
    ),
    "stream on": (["--num_frames=5", "--video={}/in.mp4"], True, (5, {"video"}, {"clip_fps": 25.0})),
    "storyboard": (["--storyboard={}/plain.json"], False, (7 + 4 + 5, set(), {})),
    "storyboard with pictures": (["--storyboard={}/pictures.json"], True, (16, {"storyboard.1"}, {})),
    "loop": (["--video={}/in.mp4", "--seconds=0.3"], True, (4 + 4, {"video"}, {"seconds": 0.3, "clip_fps": 25.0})),
    "interpolate": (["--video={}/in.mp4"], True, (7, {"video"}, {"clip_fps": 25.0})),
    "animate": (["--image={}/a.png", "--visits=2"], True, (9, {"image"}, {"visits": 2})),
}


@pytest.mark.parametrize("name", TOLD)
def test_every_task_says_how_and_is_repeated(longer, files, name):
    flags, again, (frames, inputs, options) = TOLD[name]
    task, out, repeated = name.split()[0], files / "out.mp4", files / "again.mp4"
    flags = [flag.replace("{}/a.png:0,{}/b.png:8", "0:{}/a.png,8:{}/b.png").replace("{}", str(files)) for flag in flags]
    prompt = [] if task in ("storyboard", "interpolate") else [f"--prompt={BALL}"]
    run(longer, f"--task={task}", *prompt, *flags, f"--output={out}", "--steps=2", "--seed=3")
    record = read_record(out)
    assert (record.task, record.num_frames, record.inputs.keys(), record.options) == (task, frames, inputs, options)
    assert (record.conditioning == "replacement") == (task != "generate") and len(media.read_video(out)[0]) == frames
    given = [flag for flag in flags if any(word in flag for word in ("png", "mp4", "json"))] if again else []
    run(longer, f"--like={out}", *given, f"--output={repeated}")
    assert repeated.read_bytes() == out.read_bytes()
    if again:
        with pytest.raises(command.CommandError, match=r"--\w+ is missing, which"):
            run(longer, f"--like={out}", f"--output={repeated}")
    if task == "interpolate":
        assert (record.prompts, record.given, record.fps) == ((), (), 25.0)
    if task == "storyboard":
        first, second = record.shots
        assert first == Shot(BALL, num_frames=7) and (second.transition, second.seed) == ("morph", 2)
        assert record.prompts == (BALL, BOX) and str(files) not in record.to_json()


def test_a_stream_is_written_as_a_picture_that_moves_too(longer, tmp_path):
    flags = ["--task=stream", f"--prompt={BALL}", "--num_frames=14", "--steps=2", "--context_noise=0.3", "--scale=1"]
    run(longer, *flags, f"--output={tmp_path}/out.webp")
    run(longer, *flags, f"--output={tmp_path}/sheet.png")
    assert read_record(tmp_path / "out.webp") == read_record(tmp_path / "sheet.png")
    assert read_record(tmp_path / "out.webp").num_frames == 14


def test_some_tasks_can_do_without_a_prompt():
    told = sample.Arguments(output="out.mp4", task="vary", video="in.mp4", seed=3)
    sample.check(told)
    sample.check(dataclasses.replace(told, task="interpolate", factor=2))
    for changes, message in (
        ({"task": "edit"}, "--prompt is missing"),
        ({"negative_prompt": "x"}, "--negative_prompt is for what has a prompt"),
    ):
        with pytest.raises(command.CommandError, match=message):
            sample.check(dataclasses.replace(told, **changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=animte"], "--task must be one of .* did you mean 'animate'"),
        (["--task=animate"], "--image is missing, which --task=animate needs"),
        (["--video=x.mp4"], "--video is not for --task=generate"),
        (["--task=edit", "--video=x.mp4", "--factor=2"], "--factor is not for --task=edit"),
        (["--task=keyframes"], "--keyframes is missing"),
        (["--task=keyframes", "--keyframes=a.png"], "--keyframes are FRAME:PICTURE, such as 0:first.png, got 'a.png'"),
        (["--task=keyframes", "--keyframes=²:a.png"], "--keyframes are FRAME:PICTURE"),
        (["--task=keyframes", f"--keyframes={'9' * 5000}:a.png"], "--keyframes are FRAME:PICTURE"),
        (["--task=keyframes", "--keyframes=0:a.png,0:b.png"], "--keyframes names frame 0 twice"),
        (["--task=storyboard"], "--storyboard is missing"),
        (["--task=storyboard", "--storyboard=x.json"], "--prompt is not for --task=storyboard: each of its shots"),
        (["--task=extend", "--video=x.mp4", "--num_frames=9"], "--num_frames is not for --task=extend"),
        (["--context_noise=0.1"], "--context_noise is not for --task=generate"),
        (["--task=loop", "--cascade=x"], "--task=loop is of one model"),
    ],
)
def test_flags_that_a_task_does_not_take(arguments, message):
    with pytest.raises(command.CommandError, match=message):
        run("--prompt=x", "--output=out.mp4", *arguments)
