"""From what a browser sends to a video's file."""

import html
import json
import threading

import numpy as np
import pytest
import yaml
from PIL import Image

from walt.data import media
from walt.generation.catalogue import INPUTS, TASKS
from walt.generation.record import RecordError, generate, read_record
from walt.generation.request import GenerationError
from walt.serving import show
from walt.serving import studio as studios
from walt.serving.jobs import Busy, Jobs, Waiting
from walt.serving.limits import Limits
from walt.serving.studio import Preview, Video

BALL = "a red ball moves left"


def requested(studio, task="generate", **values):
    return studio.request(studio.asked(task, {"prompt": BALL} | values))


def made(studio, task="generate", **values):
    return list(studio.make("a", studio.asked(task, {"prompt": BALL} | values)))


def test_a_video_is_made_with_previews_and_says_how(studio):
    told = {"seed": 3.0, "steps": 6.0, "negative_prompt": "", "fps": None, "num_frames": 5}
    request = requested(studio, **told)
    *news, video = made(studio, **told)
    assert all(isinstance(now, Preview) and now.fps == request.record.fps for now in news)
    assert [now.progress.step for now in news] == [1, 2, 3, 4, 5]
    assert isinstance(video, Video) and read_record(video.playing) == read_record(video.moving) == request.record
    expected = generate(studio.model, request.record)[0]
    frame = media.read_image(video.moving)
    np.testing.assert_array_equal(frame[::16, ::16], expected[0])
    assert frame.shape == (256, 256, 3)


BAD = [
    ({"prompt": ""}, "prompt 0 is empty"),
    ({"prompt": "x" * 201}, "at most 200 characters of prompt, got a request for 201"),
    ({"negative_prompt": "x" * 201}, "characters of negative prompt"),
    ({"steps": 401}, "at most 400 steps, got a request for 401"),
    ({"steps": 2.5}, "steps must be a whole number, got '2.5'"),
    ({"steps": True}, "steps must be a whole number"),
    ({"steps": "many"}, "steps must be a whole number, got 'many'"),
    ({"seed": [1]}, "seed must be a whole number"),
    ({"num_frames": -1}, "num_frames must be a positive integer"),
    ({"fps": float("inf")}, "fps must be a number"),
    ({"fps": "fast"}, "fps must be a number"),
    ({"fps": 0}, "fps must be a number from 1 to 1000, got '0'"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_requests_that_cannot_be_are_refused_before_any_work(studio, values, message):
    with pytest.raises(GenerationError, match=message):
        made(studio, **values)


def test_a_task_that_is_none(studio):
    for task in ("generat", None, ["generate"]):
        with pytest.raises(GenerationError, match="there is no task"):
            studio.asked(task, {"prompt": BALL})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What a browser might send, by name."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    video = random.integers(0, 256, (5, 20, 24, 3), np.uint8)
    mask = np.zeros((20, 24, 3), np.uint8)
    mask[:, 12:] = 255
    paths = {name: folder / f"{name}.mp4" for name in ("video", "first", "second", "long")}
    for name, path in paths.items():
        media.write_video(path, np.repeat(video, 3, axis=0) if name == "long" else video, 12.5)
    for name, pixels in (("image", video[0]), ("mask", mask)):
        paths[name] = folder / f"{name}.png"
        Image.fromarray(pixels).save(paths[name])
    paths["slow"] = folder / "slow.mp4"
    media.write_video(paths["slow"], video, 0.05)
    paths["broken"] = folder / "broken.mp4"
    paths["broken"].write_bytes(b"no video at all")
    return {name: str(path) for name, path in paths.items()}


BOARD = """shots:
- prompt: a red ball moves left
  num_frames: 3
- {prompt: a blue box moves right, seconds: 0.24, transition: continue}
"""
FAST = ("animate", "inpaint", "keyframes", "stream", "storyboard")


@pytest.mark.parametrize(
    "task",
    [
        *FAST,
        *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS if task not in (*FAST, "connect")),
    ],
)
def test_tasks_of_the_table_make_a_video(studio, files, task):
    values = {
        "prompt": f"{BALL}\na blue box moves right" if task == "stream" else BALL,
        "steps": 2,
        "seconds": 0.25,
        "direction": "forward",
        "factor": 2.0,
        "strength": 1,
        "num_frames": 9 if task == "stream" else 5,
        "context_noise": 0,
        "height": 24,
        "width": 32,
        "keyframes": [files["image"], files["image"]],
        "frames": "0, 4",
        "storyboard": BOARD,
    }
    given = {name: files[name] for name in INPUTS if name in files and (task, name) != ("loop", "video")}
    request = requested(studio, task, **values | given)
    record = request.record
    names = {"keyframes": {"keyframes.0", "keyframes.4"}, "loop": set(), "storyboard": set()}
    assert set(record.inputs) == names.get(task, set(TASKS[task].inputs)) and record.task == task
    assert record.conditioning == ("replacement" if request.inputs else "")
    assert len(record.prompts) == (2 if task in ("stream", "storyboard") else 1)
    *news, video = made(studio, task, **values | given)
    assert news and read_record(video.playing) == video.record
    shown = media.read_video(video.playing)[0]
    longer = {"extend": 8, "connect": 11, "interpolate": 9, "loop": 4, "stream": 9, "storyboard": 6}
    assert len(shown) == video.record.num_frames >= longer.get(task, 5)
    assert (video.record.height, video.record.width) == ((24, 32) if task in ("generate", "outpaint") else (16, 16))
    other = {name: pixels[..., ::-1] for name, pixels in request.inputs.items() if isinstance(pixels, np.ndarray)}
    if other:
        with pytest.raises(RecordError, match="is another than the one that the record was made with"):
            generate(studio.model, request.record, other)


def test_a_stored_storyboard_is_shown_with_its_shots(studio):
    record = requested(studio, "storyboard", storyboard=BOARD).record
    text = html.unescape(show.facts(record, "a.mp4"))
    assert "a blue box moves right, seconds 0.24, transition continue" in text and "walt sample --like=a.mp4" in text


BAD_FILES = [
    ("animate", {}, "animate needs a file: image"),
    ("edit", {"video": "broken"}, r"^broken\.mp4 cannot be read as a video"),
    ("edit", {"video": "image"}, r"^image\.png cannot be read as a video"),
    ("animate", {"image": "video"}, r"^video\.mp4 cannot be read as an image"),
    ("edit", {"video": "long"}, "15 frames, more than the 12 allowed"),
    ("keyframes", {}, "keyframes needs pictures: keyframes"),
    (
        "keyframes",
        {"keyframes": ["image"]},
        "each of the 1 pictures needs a frame of its own: their frames are missing",
    ),
    (
        "keyframes",
        {"keyframes": ["image", "image"], "frames": "0, 0"},
        "needs a frame of its own: their frames are 0, 0",
    ),
    ("keyframes", {"keyframes": ["image"], "frames": "-1"}, "the frames of pictures are numbers, .* got '-1'"),
    ("keyframes", {"keyframes": ["video"], "frames": "0"}, r"^video\.mp4 cannot be read as an image"),
    ("keyframes", {"keyframes": ["image"] * 17, "frames": "0"}, "at most 16 pictures, got 17"),
    ("stream", {"num_frames": 13}, "at most 12 frames, got a request for 13"),
    ("stream", {"prompt": " \n "}, "prompt 0 is empty"),
    ("stream", {"visits": 300}, "visits must be a whole number from 1 to 16, got '300'"),
    ("stream", {"num_frames": 5, "visits": 3, "steps": 200}, "at most 400 steps, got a request for 600"),
    ("storyboard", {}, "storyboard needs its shots, as JSON or YAML"),
    ("storyboard", {"storyboard": "{"}, "storyboard is no JSON"),
    ("storyboard", {"storyboard": "x" * 20_001}, "a storyboard has at most 20000 characters here, got 20001"),
    ("storyboard", {"storyboard": "shots: [{prompt: x, num_frames: 13}]"}, "at most 12 frames, got a request for 13"),
    ("storyboard", {"storyboard": f"shots: [{{prompt: {'x' * 201}}}]"}, "at most 200 characters of prompt"),
    ("storyboard", {"storyboard": "shots: [{prompt: x, video: a.mp4}]"}, "shot 0: unknown key 'video'"),
    ("extend", {"video": "video", "seconds": 3}, "at most 12 frames, got a request for 43"),
    ("extend", {"video": "video", "seconds": 1, "fps": 1}, "at most 12 frames, got a request for 17"),
    ("edit", {"video": "slow"}, "at most 12 frames, got a request for 1250"),
    ("predict", {"video": "slow"}, "at most 12 frames, got a request for 1250"),
    ("stream", {"video": "slow", "num_frames": 5}, "at most 12 frames, got a request for 1250"),
    ("connect", {"first": "slow", "second": "video"}, "at most 12 frames, got a request for 2500"),
    ("interpolate", {"video": "video", "factor": 2.5}, "factor must be a whole number from 2 to 8, got '2.5'"),
    ("edit", {"video": "video", "strength": 1.5}, "strength must be a number from 0 to 1, got '1.5'"),
    ("extend", {"video": "video", "direction": "up"}, "direction must be one of forward, backward, both"),
    ("extend", {"video": "video", "keep_pixels": "yes"}, "keep_pixels must be true or false"),
]


@pytest.mark.parametrize(("task", "values", "message"), BAD_FILES)
def test_bad_files_and_options_are_a_sentence_that_names_no_folder(studio, files, task, values, message):
    values = {
        name: [files[each] for each in value]
        if isinstance(value, list)
        else files.get(value, value)
        if isinstance(value, str)
        else value
        for name, value in values.items()
    }
    with pytest.raises(ValueError, match=message) as error:
        made(studio, task, **values)
    assert "/" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "image.png", "../image.png", "https://example.com/a.png", "\\\\host\\a.png"]
)
def test_no_picture_that_a_storyboard_names_is_opened(studio, files, tmp_path, monkeypatch, name):
    for reader in ("read_image", "read_video"):
        monkeypatch.setattr(media, reader, lambda *_: pytest.fail("a file was opened"))
    shots = [{"prompt": "x"}, {"prompt": "y", "image": name}]
    for text in (json.dumps({"shots": shots}), yaml.safe_dump({"shots": shots})):
        with pytest.raises(GenerationError, match=r"^storyboard: shot 1 begins with a picture, .* leave image out$"):
            studio.asked("storyboard", {"storyboard": text})
    for text in (name, f"!!python/object/apply:builtins.open ['{name}']", f"shots: !include {name}"):
        with pytest.raises(GenerationError, match=r"^storyboard (is no YAML|must be a mapping)"):
            studio.asked("storyboard", {"storyboard": text})


def test_what_waits_has_read_no_file_and_what_is_one_too_many_reads_none(studio, files, monkeypatch):
    read, begun, let = [], threading.Event(), threading.Event()
    monkeypatch.setattr(studios, "read_input", lambda *source: read.append(source))
    monkeypatch.setattr(studio, "_jobs", Jobs(1))
    long = studio._jobs.run("a", lambda: begun.set() or let.wait(60), 1)
    running = threading.Thread(target=list, args=(long,))
    running.start()
    assert begun.wait(60)
    waits = studio.make("b", studio.asked("edit", {"prompt": BALL, "video": files["video"]}))
    assert next(waits) == Waiting(1)
    with pytest.raises(Busy):
        next(studio.make("c", studio.asked("edit", {"prompt": BALL, "video": files["video"]})))
    with pytest.raises(GenerationError, match="characters of prompt"):  # what needs no file is refused without waiting
        next(studio.make("c", studio.asked("generate", {"prompt": "x" * 201})))
    assert not read
    waits.close()
    let.set()
    running.join(60)
    assert not read


def test_limits_that_are_none():
    with pytest.raises(GenerationError, match="max_side must be at least 1, got 0"):
        Limits(max_side=0)


def test_only_the_newest_files_are_kept(studio, monkeypatch):
    monkeypatch.setattr(studios, "KEPT", 2)
    videos = [made(studio, steps=1, seed=seed)[-1] for seed in range(4)]
    there = [video.playing.exists() and video.moving.exists() for video in videos]
    assert there == [False, False, True, True]


def test_what_a_visitor_has_written_is_escaped(studio):
    evil = "<img src=x onerror=alert(1)>"
    record = requested(studio, prompt=evil).record
    for text in (show.facts(record, evil), show.status(evil), show.hint(evil)):
        assert "<img" not in text and html.escape(evil) in text
    assert show.caption(requested(studio, prompt="x" * 100).record) == "x" * 60 + "… (seed 0)"


def test_a_preview_moves(studio):
    video = np.random.default_rng(0).integers(0, 256, (3, 800, 400, 3), np.uint8)
    text = show.moving(video, 8)
    assert text.startswith("<img alt=") and "data:image/webp;base64," in text and len(text) < 400_000
