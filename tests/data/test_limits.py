"""Media files that announce or unpack into too much, or that would have other files opened."""

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from walt.data import caption_files, media, records
from walt.data.recipes.video_folder import VideoFolderConfig, prepare


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """16 frames of 32x48 at 8 frames per second."""
    media.write_video(tmp_path / "a.mp4", np.zeros((16, 32, 48, 3), np.uint8), 8)
    return tmp_path / "a.mp4"


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr(media.np, "rot90", decode)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        (media.Limits(pixels=1535), "1,536 pixels, more than the 1,535 allowed"),
        (media.Limits(frames=15), "16 frames, more than the 15 allowed"),
        (media.Limits(seconds=1.5), r"2 seconds, more than the 1\.5 allowed"),
        (media.Limits(megabytes=0), r"0\.002 megabytes, more than the 0 allowed"),
    ],
)
def test_what_a_video_announces_is_checked_before_it_is_decoded(
    video: Path, limits: media.Limits, problem: str, no_decoding: None
) -> None:
    for read in (media.read_video, media.frame_times, media.frame_rate, lambda *a: list(media.iterate_frames(*a))):
        with pytest.raises(media.MediaError, match=problem):
            read(video, limits)


def test_frames_are_counted_where_a_video_announces_nothing(tmp_path: Path) -> None:
    media.write_video(tmp_path / "a.gif", np.random.default_rng(0).integers(0, 9, (16, 8, 8, 3), np.uint8), 8)
    for limits in (media.Limits(frames=15), media.Limits(seconds=1.5), media.Limits(decoded_megabytes=0)):
        with pytest.raises(media.MediaError, match="more than the"):
            media.read_video(tmp_path / "a.gif", limits)
    assert len(media.read_video(tmp_path / "a.gif", media.Limits(frames=16))[0]) == 16


def test_the_limits_of_prepare_are_flags_and_name_the_file(video: Path, tmp_path: Path) -> None:
    video.with_suffix(".txt").write_text("a caption")
    for name, value in {"max_pixels": 100, "max_frames": 3, "max_seconds": 0.5}.items():
        config = VideoFolderConfig(
            str(tmp_path / "out"), str(tmp_path), num_frames=5, height=8, width=8, **{name: value}
        )
        with pytest.raises(media.MediaError, match=r"a\.mp4 has .* more than the"):
            prepare(config)
    config = VideoFolderConfig(str(tmp_path / "out"), str(tmp_path), num_frames=5, height=8, width=8)
    assert not any(name.startswith("max_") for name in prepare(config).request)
    assert len(records.RecordSource(tmp_path / "out")) == 1


def png_that_announces(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9000, 9000), (60000, 60000), (2**30, 2**30)])
def test_images_of_absurd_sizes_are_not_unpacked(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png_that_announces(*size))
    with pytest.raises(media.MediaError, match=r"a\.png"):
        media.read_image(tmp_path / "a.png")
    with pytest.raises(media.MediaError):
        media.decode_clip(png_that_announces(*size))


def test_a_clip_has_the_colours_and_frames_it_should(tmp_path: Path) -> None:
    good = media.encode_clip(np.zeros((3, 4, 5, 3), np.uint8))
    assert media.decode_clip(good, (3, 4, 5, 3)).shape == (3, 4, 5, 3)
    with pytest.raises(media.MediaError, match=r"has the shape \(3, 4, 5, 3\), not \(4, 3, 5, 3\)"):
        media.decode_clip(good, (4, 3, 5, 3))
    with pytest.raises(media.MediaError, match="12x5 pixels in all"):
        media.decode_clip(good, (3, 4, 6, 3))
    for frames, problem in (("5", "cannot have 5 frames"), ("0", "cannot have 0 frames"), ("x", "invalid literal")):
        info = media.PngImagePlugin.PngInfo()
        info.add_text("frames", frames)
        Image.new("RGB", (5, 12)).save(tmp_path / "a.png", pnginfo=info)
        with pytest.raises(media.MediaError, match=problem):
            media.decode_clip((tmp_path / "a.png").read_bytes())
    Image.new("L", (5, 12)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(media.MediaError, match="colours L"):
        media.decode_clip((tmp_path / "a.png").read_bytes())


def test_a_video_without_frames_is_an_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    for read in (media.read_video, media.frame_times):
        with pytest.raises(media.MediaError, match=r"a\.mkv"):
            read(tmp_path / "a.mkv")


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile a.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\na.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.mp4\n#EXT-X-ENDLIST\n",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mkv"])
def test_a_playlist_in_the_clothes_of_a_video_opens_no_other_file(video: Path, playlist: str, suffix: str) -> None:
    disguised = video.with_name(f"list{suffix}")
    disguised.write_text(playlist)
    with pytest.raises(media.MediaError, match="cannot be read as a video"):
        media.read_video(disguised)


def test_a_file_whose_name_looks_like_an_address_is_a_file(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(video.parent)
    Path("concat:b.mp4").write_bytes(video.read_bytes())
    assert len(media.read_video("concat:b.mp4")[0]) == 16


def test_captions_of_absurd_length_or_number(tmp_path: Path) -> None:
    for name, content in {
        "a.txt": "x" * 200_000,
        "b.txt": "x\n" * 2000,
        "c.jsonl": '{"file": "a", "caption": "' + "x" * 200_000 + '"}',
        "d.jsonl": '{"file": "a", "caption": "x"}\n' * 2000,
        "e.csv": "file,caption\na," + "x" * 200_000,
        "f.jsonl": "[" * 100_000,
        "g.jsonl": '{"file": "a", "caption": "\\ud800"}',
    }.items():
        (tmp_path / name).write_text(content)
        read = caption_files.read_lines if name.endswith(".txt") else caption_files.read_table
        with pytest.raises(media.MediaError, match=rf"{name[0]}\.\w+ cannot be read"):
            read(tmp_path / name)
