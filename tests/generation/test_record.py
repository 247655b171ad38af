"""How a video was made, written into its file and read back."""

import dataclasses
import json

import numpy as np
import pytest

from walt.data import media
from walt.generation.bundle import read_bundle, write_bundle
from walt.generation.cascade import Cascade
from walt.generation.pipeline import Pipeline
from walt.generation.record import (
    FORMAT,
    MAX_CHARACTERS,
    Record,
    RecordError,
    checksums_of,
    generate,
    parse_record,
    read_record,
    resolve,
)
from walt.generation.request import GenerationError
from walt.generation.shots import Shot, Storyboard

BALL, BOX = "a red ball moves left — ‘é’", "a blue box moves right"


@pytest.fixture(scope="module")
def model(tiny_bundle):
    return Cascade([Pipeline(tiny_bundle)])


@pytest.fixture(scope="module")
def record(model):
    return resolve(model, [BALL, BOX], given=["ball", "box"], rewriter="rules:x", num_frames=3, seed=7, fps=10)


def test_a_record_leaves_nothing_open(record, model):
    assert (record.num_frames, record.height, record.width) == (3, 16, 16)
    assert (record.steps, record.guidance, record.solver) == (4, 2.0, "ddim")
    assert record.models == (model.stages[0].checksum,) and len(record.models[0]) == 64
    expected = model.generate([BALL, BOX], num_frames=3, seed=7)
    np.testing.assert_array_equal(generate(model, record), expected)
    second = generate(model, record.of_row(1))[0]
    assert record.of_row(1).prompts == (BOX,) and np.abs(second.astype(int) - expected[1]).max() <= 1
    with pytest.raises(GenerationError, match="num_frames must be a positive integer"):
        resolve(model, [BALL], num_frames=0)
    with pytest.raises(GenerationError, match="negative_prompt is empty"):
        resolve(model, [BALL], negative_prompt=" ")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".webp", ".png"])
def test_it_travels_in_every_kind_of_file(record, tmp_path, suffix):
    long = dataclasses.replace(record, prompts=(BALL * 200, BOX), options={"strength": 0.5}, inputs={"video": "ab"})
    video = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    path = tmp_path / f"out{suffix}"
    if suffix == ".png":
        media.contact_sheet([video], path, note=long.to_json())
    else:
        media.write_video(path, video, 10, note=long.to_json())
    assert read_record(path) == long
    if suffix == ".webp":
        np.testing.assert_array_equal(media.read_image(path), video[0])


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp"])
def test_other_files_are_named(tmp_path, suffix):
    path = tmp_path / f"plain{suffix}"
    video = np.zeros((2, 16, 16, 3), np.uint8)
    media.write_video(path, video, 10)
    with pytest.raises(RecordError, match="does not say how it was made"):
        read_record(path)
    media.write_video(path, video, 10, note="holiday")
    with pytest.raises(RecordError, match=rf"plain{suffix} says of how it was made cannot be used"):
        read_record(path)
    path.write_bytes(b"nothing")
    with pytest.raises(media.MediaError, match="cannot be read"):
        read_record(path)
    with pytest.raises(media.MediaError, match="no file"):
        read_record(tmp_path / f"nowhere{suffix}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, "its format is 2"),
        ({"format": None}, "format must be int"),
        ({"extra": 1}, "'extra' is no field"),
        ({"\x1b[2J": 1}, r"x1b\[2J' is no field"),
        ({"seed": "1"}, "seed must be int"),
        ({"seed": True}, "seed must be int"),
        ({"guidance": 1e999}, "Infinity"),
        ({"guidance": "2"}, "guidance must be float"),
        ({"prompts": "ball"}, "prompts must be list"),
        ({"prompts": []}, "no prompts"),
        ({"given": ["a"]}, "not as many"),
        ({"prompts": [1, 2]}, "prompts must be str"),
        ({"prompts": ["\x1b[31mred", "b"]}, "prompts holds control characters"),
        ({"prompts": ["a"] * 20_000}, "more than 16,384"),
        ({"options": {"strength": [1]}}, "neither text nor number"),
        ({"options": []}, "options must be dict"),
        ({"inputs": {"a\r": "b"}}, "control characters"),
        ({"solver": None}, "solver must be str"),
        ({"num_frames": 10**9}, "num_frames is 1000000000, which is not within 1 to"),
        ({"height": 0}, "height is 0, which is not within"),
        ({"width": -(10**400)}, "width is -1000"),
        ({"shots": "x"}, "shots must be list"),
        ({"shots": ["x"]}, "shot 0 must be a mapping"),
        ({"shots": [{"prompt": "x", "image": "/etc/passwd"}]}, "names the file of an image, and records hold none"),
        ({"shots": [{"prompt": "\x1b[31mred"}]}, "shots holds control characters"),
        ({"shots": [{"prompt": "x"}] * 20_000}, "shots holds more than 16,384"),
    ],
)
def test_records_that_are_none(record, changes, message):
    text = json.dumps(json.loads(record.to_json()) | changes)
    with pytest.raises(ValueError, match=message):
        parse_record(text)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 1000, " " * (MAX_CHARACTERS + 1), "{}"])
def test_texts_that_are_no_record(text):
    with pytest.raises(ValueError):
        parse_record(text)


def test_a_field_that_is_missing(record):
    for name in (field.name for field in dataclasses.fields(Record) if field.name != "shots"):
        values = json.loads(record.to_json())
        del values[name]
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            parse_record(json.dumps(values))


def test_shots_are_held_and_checked(model):
    board = Storyboard((Shot(BALL, num_frames=3), Shot(BOX, seconds=0.2, transition="continue", seed=4)))
    record = resolve(model, [], task="storyboard", inputs={"storyboard": board})
    assert record.prompts == (BALL, BOX) and record.num_frames == 3 + 2 and parse_record(record.to_json()) == record
    assert "shots" not in resolve(model, [BALL]).to_json(), "so that versions before it read it"
    other = Storyboard((board.shots[0],))
    with pytest.raises(RecordError, match="the storyboard has other shots"):
        generate(model, record, {"storyboard": other})
    pictured = Storyboard(board.shots, {0: np.zeros((16, 16, 3), np.uint8)})
    with pytest.raises(RecordError, match=r"storyboard\.0 is another than"):
        generate(model, record, {"storyboard": pictured})
    with pytest.raises(RecordError, match=r"was made with storyboard\.0, which is not given"):
        generate(model, resolve(model, [], task="storyboard", inputs={"storyboard": pictured}))
    for prompts, task, inputs, message in (
        ([BALL], "storyboard", {"storyboard": board}, "storyboard takes no prompt"),
        ([], "storyboard", {}, "storyboard needs storyboard: a storyboard"),
        ([BALL], "keyframes", {}, "keyframes needs keyframes: pictures"),
        ([BALL, BOX], "loop", {}, "loop takes one prompt, got 2"),
    ):
        with pytest.raises(GenerationError, match=message):
            resolve(model, prompts, task=task, inputs=inputs)


def test_a_hostile_record_is_refused_as_any_request(record, model):
    for changes, message in (
        ({"steps": 10**9}, "steps"),
        ({"seed": -1}, "seed"),
        ({"row": 2**40}, "numbers"),
        ({"solver": "rm"}, "solver"),
    ):
        with pytest.raises(GenerationError, match=message):
            generate(model, dataclasses.replace(record, **changes))


def test_a_checksum_is_the_models_however_it_was_stored(tiny_bundle, model, tmp_path):
    write_bundle(tiny_bundle, tmp_path / "same")
    assert Pipeline(read_bundle(tmp_path / "same")).checksum == model.stages[0].checksum
    write_bundle(tiny_bundle, tmp_path / "rounded", dtype="float16")
    assert Pipeline(read_bundle(tmp_path / "rounded")).checksum != model.stages[0].checksum
    diffusion = {**tiny_bundle.diffusion, "schedule": "cosine"}
    assert Pipeline(dataclasses.replace(tiny_bundle, diffusion=diffusion)).checksum != model.stages[0].checksum


def test_another_model_is_refused(record, model):
    record.check_models("out.mp4", model)
    for models, message in (
        (("0" * 64,), r"out\.mp4 was made by another model \(checksum 000000000000\) .* --checkpoint"),
        ((*record.models, "1" * 64), "made by 2 models, and 1 are given"),
    ):
        with pytest.raises(RecordError, match=message):
            dataclasses.replace(record, models=models).check_models("out.mp4", model)


def test_inputs_that_are_others_are_named(record):
    a, b = np.zeros((2, 16, 16, 3), np.uint8)
    b += 1
    made = dataclasses.replace(record, inputs=checksums_of({"keyframes": {0: a, 8: b}}))
    assert made.others("x", {"keyframes": {0: a, 8: b}}) == []
    assert made.others("x", {"keyframes": {0: b, 4: b}}) == [
        "keyframes.0 is another than the one that x was made with",
        "x was made without keyframes.4, which is given",
        "x was made with keyframes.8, which is not given",
    ]
    made = dataclasses.replace(record, shots=(Shot(BALL),))
    assert made.others("x", {"storyboard": Storyboard((Shot(BALL),))}) == []
    (line,) = made.others("x", {"storyboard": Storyboard((Shot(BOX),))})
    assert line == "the storyboard has other shots than the one that x was made with"
