"""Videos of any length through the autoencoder: equal to the whole at once, whatever their length and size."""

import numpy as np
import pytest

from walt import reconstruct
from walt.command import CommandError
from walt.data import media
from walt.generation.bundle import write_bundle
from walt.generation.files import SquaredError
from walt.generation.fit import fit_stream
from walt.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_bundle):
    return Pipeline(tiny_bundle)


def noise(frames, height=16, width=16):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.mark.parametrize(("frames", "size", "chunks"), [(9, (16, 16), [5]), (7, (10, 13), [2, 3]), (1, (16, 16), [])])
def test_a_stream_gives_what_the_whole_gives(pipeline, frames, size, chunks, capsys):
    video = noise(frames, *size)
    streamed = list(pipeline.reconstruct_stream(np.split(video, np.cumsum(chunks))))
    made = np.concatenate(streamed)
    assert made.shape == video.shape and made.dtype == np.uint8
    whole = pipeline.reconstruct(video)
    assert np.abs(made.astype(int) - whole).max() <= 1
    assert ("rounded up" in capsys.readouterr().out) == (size != (16, 16) or frames == 7)


def test_frames_come_out_on_the_way(pipeline):
    taken = 0

    def chunks():
        nonlocal taken
        for frame in noise(9):
            taken += 1
            yield frame[None]

    stream = pipeline.reconstruct_stream(chunks())
    assert len(next(stream)) == 1 and taken == 1
    assert len(next(stream)) == 4 and taken == 5


def test_padding_and_cropping_of_a_stream():
    video = noise(6, 10, 13)
    padded, crop = fit_stream(np.split(video, [4]))
    given = list(padded)
    assert [chunk.shape for chunk in given] == [(4, 16, 16, 3), (2, 16, 16, 3), (3, 16, 16, 3)]
    np.testing.assert_array_equal(given[2], np.repeat(given[1][-1:], 3, axis=0))
    np.testing.assert_array_equal(np.concatenate(list(crop(given))), video)


def test_the_command(tiny_bundle, tmp_path, capsys):
    write_bundle(tiny_bundle, tmp_path / "bundle")
    media.write_video(tmp_path / "in.mp4", noise(11, 18, 16), 7)
    paths = [str(tmp_path / name) for name in ("in.mp4", "out.mp4")]
    reconstruct.main(["walt reconstruct", *paths, f"--checkpoint={tmp_path / 'bundle'}", "--chunk=4", "--side_by_side"])
    made, fps = media.read_video(paths[1])
    assert made.shape == (11, 18, 32, 3) and fps == pytest.approx(7, rel=1e-3)
    assert "11 frames, PSNR" in capsys.readouterr().out
    original, _ = media.read_video(paths[0])
    assert np.abs(made[:, :, :16].astype(int) - original).mean() < 8


def test_error_of_a_stream_is_that_of_the_whole():
    a, b = noise(5), noise(5) // 2
    error = SquaredError()
    for part in (slice(0, 2), slice(2, 5)):
        error.add(a[part], b[part])
    assert error.frames == 5
    assert error.psnr() == pytest.approx(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["in.mp4", "out.gif"], CommandError, "must end in .mp4 or .webm"),
        (["in.mp4", "out.mp4", "--chunk=0"], CommandError, "--chunk must be at least 1"),
        (["in.mp4", "in.mp4"], CommandError, "the same file"),
        (["in.mp4", "out.mp4"], media.MediaError, "There is no file in.mp4"),
    ],
)
def test_refuses_before_loading_a_model(arguments, error, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        reconstruct.main(["walt reconstruct", *arguments])
