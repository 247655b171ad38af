"""From what a browser sends to a video's file."""

import html

import numpy as np
import pytest
from PIL import Image

from walt.data import media
from walt.generation.catalogue import INPUTS, TASKS
from walt.generation.record import RecordError, generate, read_record
from walt.generation.request import GenerationError
from walt.serving import show
from walt.serving import studio as studios
from walt.serving.jobs import Progress
from walt.serving.limits import Limits
from walt.serving.studio import Video

BALL = "a red ball moves left"


def asked(studio, **values):
    return studio.request("generate", {"prompt": BALL} | values)


def test_a_video_is_made_with_previews_and_says_how(studio):
    request = asked(studio, seed=3.0, steps=6.0, negative_prompt="", fps=None, num_frames=5)
    *news, video = studio.make("a", request)
    assert all(isinstance(now, Progress) for now in news) and [now.step for now in news] == [1, 2, 3, 4, 5]
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
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_requests_that_cannot_be_are_refused_before_any_work(studio, values, message):
    with pytest.raises(GenerationError, match=message):
        asked(studio, **values)


def test_a_task_that_is_none(studio):
    for task in ("generat", None, ["generate"]):
        with pytest.raises(GenerationError, match="there is no task"):
            studio.request(task, {"prompt": BALL})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What a browser might send, by name."""
    folder, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    video = random.integers(0, 256, (5, 20, 24, 3), np.uint8)
    mask = np.zeros((20, 24, 3), np.uint8)
    mask[:, 12:] = 255
    made = {name: folder / f"{name}.mp4" for name in ("video", "first", "second", "long")}
    for name, path in made.items():
        media.write_video(path, np.repeat(video, 3, axis=0) if name == "long" else video, 12.5)
    for name, pixels in (("image", video[0]), ("mask", mask)):
        made[name] = folder / f"{name}.png"
        Image.fromarray(pixels).save(made[name])
    made["broken"] = folder / "broken.mp4"
    made["broken"].write_bytes(b"no video at all")
    return {name: str(path) for name, path in made.items()}


@pytest.mark.parametrize(
    "task",
    [
        "animate",
        "inpaint",
        *(
            pytest.param(task, marks=pytest.mark.slow)
            for task in TASKS
            if task not in ("animate", "inpaint", "connect")
        ),
    ],
)
def test_tasks_of_the_table_make_a_video(studio, files, task):
    values = {
        "prompt": BALL,
        "steps": 2,
        "seconds": 0.25,
        "direction": "forward",
        "factor": 2.0,
        "strength": 1,
        "height": 24,
        "width": 32,
    }
    request = studio.request(task, values | {name: files[name] for name in INPUTS})
    assert set(request.record.inputs) == set(TASKS[task].inputs) and request.record.task == task
    assert request.record.conditioning == ("replacement" if request.inputs else "")
    *news, video = studio.make("a", request)
    assert news and read_record(video.playing) == video.record
    shown = media.read_video(video.playing)[0]
    assert (
        len(shown) == video.record.num_frames >= {"extend": 8, "connect": 11, "interpolate": 9, "loop": 4}.get(task, 5)
    )
    assert (video.record.height, video.record.width) == ((24, 32) if task in ("generate", "outpaint") else (16, 16))
    other = {name: pixels[..., ::-1] for name, pixels in request.inputs.items()}
    if other:
        with pytest.raises(RecordError, match="is another than the one that the record was made with"):
            generate(studio.model, request.record, other)


BAD_FILES = [
    ("animate", {}, "animate needs a file: image"),
    ("edit", {"video": "broken"}, r"^broken\.mp4 cannot be read as a video"),
    ("edit", {"video": "image"}, r"^image\.png cannot be read as a video"),
    ("animate", {"image": "video"}, r"^video\.mp4 cannot be read as an image"),
    ("edit", {"video": "long"}, "15 frames, more than the 12 allowed"),
    ("extend", {"video": "video", "seconds": 3}, "at most 12 frames, got a request for 43"),
    ("interpolate", {"video": "video", "factor": 2.5}, "factor must be a whole number from 2 to 8, got '2.5'"),
    ("edit", {"video": "video", "strength": 1.5}, "strength must be a number from 0 to 1, got '1.5'"),
    ("extend", {"video": "video", "direction": "up"}, "direction must be one of forward, backward, both"),
    ("extend", {"video": "video", "keep_pixels": "yes"}, "keep_pixels must be true or false"),
]


@pytest.mark.parametrize(("task", "values", "message"), BAD_FILES)
def test_bad_files_and_options_are_a_sentence_that_names_no_folder(studio, files, task, values, message):
    values = {name: files.get(value, value) if isinstance(value, str) else value for name, value in values.items()}
    with pytest.raises(ValueError, match=message) as error:
        studio.request(task, {"prompt": BALL} | values)
    assert "/" not in str(error.value)


def test_limits_that_are_none():
    with pytest.raises(GenerationError, match="max_side must be at least 1, got 0"):
        Limits(max_side=0)


def test_only_the_newest_files_are_kept(studio, monkeypatch):
    monkeypatch.setattr(studios, "KEPT", 2)
    made = [list(studio.make("a", asked(studio, steps=1, seed=seed)))[-1] for seed in range(4)]
    there = [video.playing.exists() and video.moving.exists() for video in made]
    assert there == [False, False, True, True]


def test_what_a_visitor_has_written_is_escaped(studio):
    evil = "<img src=x onerror=alert(1)>"
    record = asked(studio, prompt=evil).record
    for text in (show.facts(record, evil), show.status(evil), show.hint(evil)):
        assert "<img" not in text and html.escape(evil) in text
    assert show.caption(asked(studio, prompt="x" * 100).record) == "x" * 60 + "… (seed 0)"


def test_a_preview_moves(studio):
    video = np.random.default_rng(0).integers(0, 256, (3, 800, 400, 3), np.uint8)
    text = show.moving(video, 8)
    assert text.startswith("<img alt=") and "data:image/webp;base64," in text and len(text) < 400_000
