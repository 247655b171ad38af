from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from walt.data import media


def smooth_video(frames: int = 9, height: int = 32, width: int = 48) -> np.ndarray:
    """A soft gradient that drifts: what a lossy codec keeps well."""
    y, x, t = np.meshgrid(np.arange(height), np.arange(width), np.arange(frames), indexing="ij")
    channels = [120 + 80 * np.sin(0.1 * x + 0.3 * t), 120 + 80 * np.cos(0.1 * y + 0.2 * t), 100 + 2 * y]
    return np.stack(channels, -1).transpose(2, 0, 1, 3).clip(0, 255).astype(np.uint8)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_encoded_clips_are_lossless(frames: int, height: int, width: int, seed: int) -> None:
    video = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)
    np.testing.assert_array_equal(media.decode_clip(media.encode_clip(video)), video)


@pytest.mark.parametrize("damage", [b"", b"not a png", None])
def test_damaged_clip_bytes_are_refused(damage: bytes | None) -> None:
    data = media.encode_clip(smooth_video())
    with pytest.raises(media.MediaError, match="not an encoded clip"):
        media.decode_clip(data[: len(data) // 2] if damage is None else damage)


@pytest.mark.parametrize(
    ("video", "problem"),
    [
        (np.zeros((3, 8, 8, 3), np.float32), "uint8 array, got float32"),
        (np.zeros((8, 8, 3), np.uint8), r"got \[8, 8, 3\]"),
        (np.zeros((3, 8, 8, 1), np.uint8), r"got \[3, 8, 8, 1\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), r"got \[0, 8, 8, 3\]"),
        ([1, 2], "uint8 array, got list"),
    ],
)
def test_only_uint8_videos_are_written(video: np.ndarray, problem: str, tmp_path: Path) -> None:
    with pytest.raises(media.MediaError, match=problem):
        media.write_video(tmp_path / "x.mp4", video, 8)
    with pytest.raises(media.MediaError, match=problem):
        media.encode_clip(video)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["mp4", "webm", "gif"])
def test_written_videos_read_back(suffix: str, tmp_path: Path) -> None:
    video = smooth_video()
    media.write_video(tmp_path / f"sub/x.{suffix}", video, 12.5)
    back, fps = media.read_video(tmp_path / f"sub/x.{suffix}")
    assert back.shape == video.shape and back.dtype == np.uint8
    assert fps == pytest.approx(12.5, rel=0.01)
    assert np.abs(back.astype(int) - video).mean() < 5
    assert [p.name for p in (tmp_path / "sub").iterdir()] == [f"x.{suffix}"]  # no temporary file stays


def test_colours_survive_the_codec(tmp_path: Path) -> None:
    """A wrong colour matrix or range would shift flat colours by far more than rounding does."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 200)]
    video = np.stack([np.broadcast_to(np.uint8(c), (16, 16, 3)) for c in colours])
    for suffix in ("mp4", "webm"):
        media.write_video(tmp_path / f"x.{suffix}", video, 5)
        assert np.abs(media.read_video(tmp_path / f"x.{suffix}")[0].astype(int) - video).max() <= 8, suffix


def test_mp4_plays_everywhere(tmp_path: Path) -> None:
    media.write_video(tmp_path / "x.mp4", smooth_video(5, 31, 33), 8)
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (32, 34)  # odd sizes gain one edge pixel
    data = (tmp_path / "x.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can start before it has the whole file


def test_scale_repeats_pixels(tmp_path: Path) -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    media.write_video(tmp_path / "x.mp4", video, 4, scale=8)
    back, _ = media.read_video(tmp_path / "x.mp4")
    assert back.shape == (2, 64, 64, 3)
    assert np.abs(back[:, 4::8, 4::8].astype(int) - video).mean() < 12


def test_gif_of_few_colours_is_exact_and_keeps_time(tmp_path: Path) -> None:
    video = np.zeros((12, 16, 16, 3), np.uint8)
    for t in range(12):
        video[t, :, t] = (250, 200, 10)
    media.write_video(tmp_path / "x.gif", video, 15)
    with Image.open(tmp_path / "x.gif") as gif:
        frames, duration = [], 0
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.array(gif.convert("RGB")))
            duration += gif.info["duration"]
    assert np.abs(np.stack(frames).astype(int) - video).max() <= 6
    assert duration == pytest.approx(1000 * 12 / 15, abs=10)


@pytest.mark.parametrize("name", ["x.avi", "x", "x.png"])
def test_unknown_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(media.MediaError, match=r"must end in \.mp4, \.webm, \.gif or \.webp"):
        media.write_video(tmp_path / name, smooth_video(), 8)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError), media.atomic_path(tmp_path / "x.mp4") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "x.mp4").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.webm").write_text("hello")
    media.write_video(tmp_path / "whole.mp4", smooth_video(), 8)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "whole.mp4").read_bytes()[:400])
    for name in ("empty.mp4", "text.webm", "cut.mp4"):
        with pytest.raises(media.MediaError, match=name):
            media.read_video(tmp_path / name)
        with pytest.raises(media.MediaError, match=name):
            media.frame_times(tmp_path / name)
    with pytest.raises(media.MediaError, match=r"There is no file .*none\.mp4"):
        media.read_video(tmp_path / "none.mp4")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(media.MediaError, match=r"bad\.png cannot be read as an image"):
        media.read_image(tmp_path / "bad.png")


def test_frame_times_match_decoded_frames(tmp_path: Path) -> None:
    for name in ("x.mp4", "x.webm", "x.gif"):
        media.write_video(tmp_path / name, smooth_video(), 10)
        decoded = [time for time, _ in media.iterate_frames(tmp_path / name)]
        np.testing.assert_allclose(media.frame_times(tmp_path / name), decoded, atol=2e-3)


def test_resize_covers_and_crops_the_centre() -> None:
    frame = np.zeros((20, 40, 3), np.uint8)
    frame[:, 10:30] = 255
    np.testing.assert_array_equal(media.resize(frame, 5, 5), np.full((5, 5, 3), 255, np.uint8))
    assert media.resize(frame, 50, 30).shape == (50, 30, 3)
    np.testing.assert_array_equal(media.resize(frame, 20, 40), frame)


def test_contact_sheet(tmp_path: Path) -> None:
    videos = [smooth_video(frames) for frames in (9, 1, 17)]
    media.contact_sheet(videos, tmp_path / "sheet.png", ["one", "a long label " * 40, "three"], columns=5, across=2)
    sheet = media.read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] > 2 * 5 * 96 and sheet.std() > 20
    with pytest.raises(media.MediaError, match="as many labels, got 1"):
        media.contact_sheet(videos, tmp_path / "y.png", ["one"])
    with pytest.raises(media.MediaError, match="at least one clip"):
        media.contact_sheet([], tmp_path / "y.png")
    with pytest.raises(media.MediaError, match="one frame size"):
        media.contact_sheet([smooth_video(), smooth_video(height=8)], tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()


def test_files_of_buckets_are_written_here_and_copied(monkeypatch, tmp_path):
    class Bucket:
        def __init__(self, path):
            self.path = path

        def write_bytes(self, data):
            (tmp_path / self.path.replace("/", "_")).write_bytes(data)

    monkeypatch.setattr(media.epath, "Path", Bucket)
    media.write_video("gs://bucket/made/out.mp4", np.zeros((3, 16, 16, 3), np.uint8), 8.0)
    assert media.read_video(tmp_path / "gs:__bucket_made_out.mp4")[0].shape == (3, 16, 16, 3)
    with pytest.raises(RuntimeError), media.atomic_path("gs://bucket/half.json") as local:
        local.write_text("half")
        raise RuntimeError
    assert len(list(tmp_path.iterdir())) == 1
