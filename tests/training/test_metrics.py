import io
import json
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageSequence

from walt.training.metrics import MetricLog, read_metrics, video_summary


def test_lines_of_later_steps_and_a_torn_line_are_removed(tmp_path):
    lines = [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"step": 6, "loss": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "lo')
    assert read_metrics(tmp_path) == lines
    log = MetricLog(tmp_path, 4)
    log.write(6, {"loss": 0.25})
    log.close()
    records = read_metrics(tmp_path)
    assert [(record["step"], record["loss"]) for record in records] == [(2, 1.0), (4, 0.5), (6, 0.25)]
    assert log.has(4, "loss") and log.has(6, "loss") and not log.has(5, "loss")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 1}\noops\n{"step": 2}\n', "line 2: not a JSON record"),
        ("[1]\n", "line 1: .* JSON object"),
        ('{"loss": 1}\n', "line 1: .* with a step"),
    ],
)
def test_a_damaged_log_is_named_with_its_line(tmp_path, text, words):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"metrics.jsonl, {words}"):
        read_metrics(tmp_path)


def test_opening_the_log_changes_nothing(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, {"loss": 1.0})
    log.close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    MetricLog(tmp_path, 1).close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_bucket_that_does_not_answer_costs_lines_and_not_the_run(bucket, caplog):
    log = MetricLog("gs://runs/film", 0)
    vars(log)["_board"] = mock.MagicMock()  # it has its own way to a bucket
    for step in (1, 2, 3):
        bucket.down = step == 2
        log.write(step, {"loss": 1.0})
    assert [record["step"] for record in read_metrics("gs://runs/film")] == [1, 3]
    assert caplog.text.count("the metrics of step 2 could not be written to gs://runs/film: 503") == 1


def test_non_finite_numbers_are_null(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, {"psnr": float("inf"), "loss": np.float32("nan"), "ok": np.float32(2)})
    log.close()
    [record] = read_metrics(tmp_path)
    assert record["psnr"] is None and record["loss"] is None and record["ok"] == 2.0


def test_videos_go_to_tensorboard_as_animated_gifs(tmp_path):
    videos = np.zeros((3, 5, 8, 12, 3), np.uint8)
    videos[0] += np.arange(0, 250, 50, dtype=np.uint8)[:, None, None, None]  # equal frames would be merged into one
    videos[1, 2] = (255, 0, 0)  # the second video turns red in its third frame
    [value] = video_summary("samples", videos).value
    assert (value.image.width, value.image.height) == (24, 16)  # 2 x 2, one of them blank
    frames = [
        np.asarray(f.convert("RGB"))
        for f in ImageSequence.Iterator(Image.open(io.BytesIO(value.image.encoded_image_string)))
    ]
    red = [frame[:8, 12:].astype(int).sum(axis=(0, 1)) for frame in frames]
    assert len(frames) == 5
    np.testing.assert_allclose([frame / 96 for frame in red], [[255 * (t == 2), 0, 0] for t in range(5)], atol=8)
    log = MetricLog(tmp_path, 0)
    log.write(3, {"samples/video": videos, "samples/seconds": 1.0})
    log.close()
    [record] = read_metrics(tmp_path)
    assert record["samples/seconds"] == 1.0 and "samples/video" not in record
    [events] = (tmp_path / "tensorboard").iterdir()
    assert b"GIF89a" in events.read_bytes()
