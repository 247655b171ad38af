"""From what a browser sends to a video's file."""

import html

import numpy as np
import pytest

from walt.data import media
from walt.generation.record import generate, read_record
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
    record = asked(studio, seed=3.0, steps=6.0, negative_prompt="", fps=None, num_frames=5)
    *news, video = studio.make("a", record)
    assert all(isinstance(now, Progress) for now in news) and [now.step for now in news] == [1, 2, 3, 4, 5]
    assert isinstance(video, Video) and read_record(video.playing) == read_record(video.moving) == record
    expected = generate(studio.model, record)[0]
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
    record = asked(studio, prompt=evil)
    for text in (show.facts(record, evil), show.status(evil), show.hint(evil)):
        assert "<img" not in text and html.escape(evil) in text
    assert show.caption(asked(studio, prompt="x" * 100)) == "x" * 60 + "… (seed 0)"


def test_a_preview_moves(studio):
    video = np.random.default_rng(0).integers(0, 256, (3, 800, 400, 3), np.uint8)
    text = show.moving(video, 8)
    assert text.startswith("<img alt=") and "data:image/webp;base64," in text and len(text) < 400_000
