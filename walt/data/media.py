"""Video and image files, clips as bytes, and contact sheets. Pixels are uint8 [T, H, W, 3] at every border of this file."""

import contextlib
import dataclasses
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from etils import epath
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin, UnidentifiedImageError

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi", ".m4v")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

# Constant quality close to lossless to the eye; yuv420p is the one pixel format that every player shows.
_CODECS = {
    ".mp4": ("libx264", {"crf": "16", "preset": "medium"}, {"movflags": "+faststart"}),
    ".webm": ("libvpx-vp9", {"crf": "20", "b": "0", "cpu-used": "4", "row-mt": "1"}, {"fflags": "+bitexact"}),
}


_PICTURES = (".gif", ".webp")  # animations that Pillow writes
_DESCRIPTION = 0x010E  # EXIF's ImageDescription

# The demuxers of those files. FFmpeg knows hundreds, some of which read whatever other file or address a playlist names.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi"


class MediaError(ValueError):
    """A media file or clip that cannot be read or written; the message names it and what is wrong."""


def check_video(video: np.ndarray) -> None:
    """Raises MediaError unless the array is a non-empty uint8 [T, H, W, 3]."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8:
        raise MediaError(f"A video must be a uint8 array, got {getattr(video, 'dtype', type(video).__name__)}.")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise MediaError(f"A video must have the shape [frames, height, width, 3], got {list(video.shape)}.")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a media file may be at most; a small file can announce, or unpack into, far more than a machine can hold.

    Attributes:
      pixels: of a frame or image.
      frames, seconds: of a video.
      megabytes: of the file.
      decoded_megabytes: of a video whose frames are all held in memory.
    """

    pixels: int = 2**26
    frames: int = 2**20
    seconds: float = 12 * 3600.0
    megabytes: int = 2**16
    decoded_megabytes: int = 2**13

    def check(self, path: str | os.PathLike, **found: float) -> None:
        """Raises MediaError naming the first of the `found` sizes that exceeds its limit."""
        for name, value in found.items():
            most = getattr(self, name)
            if value > most:
                shown, limit = (f"{number:,.3f}".rstrip("0").rstrip(".") for number in (value, most))
                raise MediaError(f"{path} has {shown} {name.replace('_', ' ')}, more than the {limit} allowed.")


LIMITS = Limits()


# ---- reading


def read_video(path: str | os.PathLike, limits: Limits = LIMITS) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """All frames of a video file and its frames per second; MediaError if it cannot be read, has no frame or exceeds a limit."""
    frames: list[np.ndarray] = []
    for _, frame in iterate_frames(path, limits):
        if frame.shape != (frames or [frame])[0].shape:
            raise MediaError(f"{path} changes its frame size on the way.")
        limits.check(path, decoded_megabytes=(len(frames) + 1) * frame.nbytes / 2**20)
        frames.append(frame)
    return np.stack(frames), frame_rate(path, limits)


def frame_rate(path: str | os.PathLike, limits: Limits = LIMITS) -> float:
    """Mean frames per second of a video file."""
    times = frame_times(path, limits)
    if len(times) > 1 and times[-1] > 0:
        return round((len(times) - 1) / times[-1], 6)
    with _open(path, limits) as (_, stream):
        return float(stream.average_rate or stream.guessed_rate or 1)


def frame_times(path: str | os.PathLike, limits: Limits = LIMITS) -> Float[np.ndarray, " t"]:
    """Seconds since the first frame at which each frame of a video appears, read without decoding; MediaError as above."""
    stamps: list[int] = []
    with _open(path, limits) as (container, stream):
        for packet in container.demux(stream):
            if packet.pts is not None:
                stamps.append(packet.pts)
                limits.check(path, frames=len(stamps))
        times = np.sort(np.asarray(stamps, np.float64)) * float(stream.time_base or 0)
    if not len(times):
        raise MediaError(f"{path} holds no frame.")
    limits.check(path, seconds=times[-1] - times[0])
    return times - times[0]


def iterate_frames(
    path: str | os.PathLike, limits: Limits = LIMITS
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """Yields (seconds since the first frame, frame) without holding the whole video in memory.

    Raises:
      MediaError: the file is missing, no video, damaged, holds no frame, or exceeds a limit, which what it announces does before
        any frame is decoded.
    """
    first = None
    with _open(path, limits) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 1)
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            limits.check(path, frames=index + 1, seconds=index / rate, pixels=frame.width * frame.height)
            time = index / rate if frame.time is None else float(frame.time)
            first = time if first is None else first
            # Phones store upright video lying down, with a rotation to apply when it is shown.
            turns = round(getattr(frame, "rotation", 0) / 90) % 4
            yield time - first, np.rot90(frame.to_ndarray(format="rgb24"), turns)
    if first is None:
        raise MediaError(f"{path} holds no frame.")


@contextlib.contextmanager
def _open(path: str | os.PathLike, limits: Limits):
    """Opens the first video stream of a file and turns every reason why it cannot be read into a MediaError."""
    _check_file(path, limits)
    try:
        # An absolute path is never taken for an address, and no file makes FFmpeg open another one.
        options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
        with av.open(str(Path(path).absolute()), options=options) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError(f"{path} cannot be read as a video: there is no decoder for it.")
            announced = float((stream.duration or 0) * (stream.time_base or 0))
            limits.check(path, pixels=stream.width * stream.height, frames=stream.frames, seconds=announced)
            stream.codec_context.options = {"max_pixels": str(limits.pixels)}  # a stream may grow on the way
            yield container, stream
    except MediaError:
        raise
    except (av.error.FFmpegError, ValueError, TypeError, ArithmeticError) as error:
        raise MediaError(f"{path} cannot be read as a video: {error}") from error


def read_image(path: str | os.PathLike, limits: Limits = LIMITS) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB; MediaError if it cannot be read or exceeds a limit."""
    _check_file(path, limits)
    with _image_errors(f"{path} cannot be read as an image"), Image.open(path, formats=_IMAGE_FORMATS) as image:
        limits.check(path, pixels=image.width * image.height)
        return np.array(image.convert("RGB"))


def _check_file(path: str | os.PathLike, limits: Limits) -> None:
    if not Path(path).is_file():
        raise MediaError(f"There is no file {path}.")
    limits.check(path, megabytes=Path(path).stat().st_size / 2**20)


@contextlib.contextmanager
def _image_errors(problem: str) -> Iterator[None]:
    """Whatever Pillow's decoders raise, among others struct.error and IndexError, becomes a MediaError."""
    try:
        yield
    except MediaError:
        raise
    except UnidentifiedImageError as error:  # its own message names an address in memory
        raise MediaError(f"{problem}: not of a known format") from error
    except Exception as error:
        raise MediaError(f"{problem}: {error}") from error


def read_note(path: str | os.PathLike, limits: Limits = LIMITS) -> str | None:
    """What `note` was given when the file was written (.mp4, .webm, .gif, .webp or .png): text that anybody may have put there. None if there
    is none; MediaError if the file cannot be read."""
    if Path(path).suffix.lower() in _CODECS:
        with _open(path, limits) as (container, _):
            return next((text for name, text in container.metadata.items() if name.lower() == "comment"), None)
    _check_file(path, limits)
    with _image_errors(f"{path} cannot be read as an image"), Image.open(path, formats=_IMAGE_FORMATS) as image:
        found = image.info.get("comment") or image.getexif().get(_DESCRIPTION)
        return found.decode(errors="replace") if isinstance(found, bytes) else found if isinstance(found, str) else None


def resize(frame: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Scales a frame until it covers height x width and crops the centre; area averaging when it shrinks."""
    scale = max(height / frame.shape[0], width / frame.shape[1])
    crop_height, crop_width = height / scale, width / scale
    top, left = (frame.shape[0] - crop_height) / 2, (frame.shape[1] - crop_width) / 2
    box = (left, top, left + crop_width, top + crop_height)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), method, box=box))


# ---- writing


def write_video(
    path: str | os.PathLike, video: UInt8[np.ndarray, "t h w 3"], fps: float, *, scale: int = 1, note: str = ""
) -> None:
    """Writes .mp4 (H.264), .webm (VP9), .gif or .webp (without loss), chosen by the suffix; the file appears as a whole or not at all.

    Args:
      path: the file; its folder is made if absent.
      video: the frames. Odd sizes are extended by one edge pixel in mp4 and webm, whose colour planes need even ones.
      fps: frames per second.
      scale: whole factor by which every pixel is repeated, so that small videos survive the codec and are easy to see.
      note: ASCII text for the file's comment, see `read_note`.

    Raises:
      MediaError: wrong array, suffix, rate or scale.
    """
    check_video(video)
    _check_writable(path, (*_CODECS, *_PICTURES), fps, scale)
    if (suffix := Path(path).suffix.lower()) in _CODECS:
        with video_writer(path, fps, scale=scale, note=note) as write:
            write(video)
        return
    with atomic_path(path) as temporary:
        (_write_gif if suffix == ".gif" else _write_webp)(temporary, _enlarged(video, scale), fps, note)


@contextlib.contextmanager
def video_writer(
    path: str | os.PathLike, fps: float, *, scale: int = 1, note: str = ""
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields a function that appends frames, uint8 [T, H, W, 3], to an .mp4 or .webm that is never held in memory.

    The file appears when the block succeeds, as a whole or not at all. Arguments and errors are those of `write_video`.
    """
    _check_writable(path, tuple(_CODECS), fps, scale)
    codec, options, container_options = _CODECS[Path(path).suffix.lower()]
    with atomic_path(path) as temporary, av.open(str(temporary), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options)
        assert isinstance(stream, av.VideoStream)
        if note:
            container.metadata["comment"] = note
        # Without these tags a player guesses by size which matrix turns YUV back into RGB.
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU601, ColorRange.MPEG
        stream.pix_fmt = "yuv420p"

        def write(video: np.ndarray) -> None:
            check_video(video)
            for pixels in video:
                pixels = _enlarged(pixels[None], scale)[0]
                pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), "edge")
                if not stream.codec_context.is_open:
                    stream.height, stream.width = pixels.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))

        yield write
        container.mux(stream.encode())


def _check_writable(path: str | os.PathLike, suffixes: Sequence[str], fps: float, scale: int) -> None:
    if Path(path).suffix.lower() not in suffixes:
        raise MediaError(f"{path} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}.")
    if not fps > 0 or scale < 1:
        raise MediaError(f"fps and scale must be positive, got {fps} and {scale}.")


def _enlarged(video: np.ndarray, scale: int) -> np.ndarray:
    return video.repeat(scale, axis=1).repeat(scale, axis=2)


def _write_gif(path: Path, video: np.ndarray, fps: float, note: str) -> None:
    # One palette for all frames, or still regions shimmer.
    whole = Image.fromarray(video.reshape(-1, *video.shape[2:]))
    palette = whole.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    frames = [Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE) for pixels in video]
    # GIF counts time in hundredths of a second and viewers slow anything below two of them down.
    ends = [max(2 * (i + 1), round(100 * (i + 1) / fps)) for i in range(len(frames))]
    durations = [10 * (end - start) for start, end in zip([0, *ends], ends, strict=False)]
    comment = {"comment": note.encode()} if note else {}
    frames[0].save(
        path, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, disposal=1, **comment
    )


def _write_webp(path: Path, video: np.ndarray, fps: float, note: str) -> None:
    frames = [Image.fromarray(pixels) for pixels in video]
    ends = [round(1000 * (i + 1) / fps) for i in range(len(frames))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    frames[0].save(
        path,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        lossless=True,
        exif=_described(note),
    )


def _described(note: str) -> Image.Exif:
    exif = Image.Exif()
    if note:
        exif[_DESCRIPTION] = note
    return exif


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix, that replaces `path` when the block succeeds; for `gs://` paths one of this machine,
    which is copied there."""
    if "://" in os.fspath(path):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / Path(path).name
            yield local
            epath.Path(path).write_bytes(local.read_bytes())
        return
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes files private
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


# ---- clips inside records


def encode_clip(video: UInt8[np.ndarray, "t h w 3"]) -> bytes:
    """A clip as lossless bytes: a PNG of its frames stacked downwards, with their number in a text field."""
    check_video(video)
    frames, height, width, _ = video.shape
    info = PngImagePlugin.PngInfo()
    info.add_text("frames", str(frames))
    file = io.BytesIO()
    # Level 3 takes half the time of the default level and, on game footage, hardly more bytes.
    Image.fromarray(video.reshape(frames * height, width, 3)).save(file, "PNG", compress_level=3, pnginfo=info)
    return file.getvalue()


def decode_clip(data: bytes, shape: tuple[int, ...] | None = None) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip that `encode_clip` made bytes of; MediaError if they are anything else.

    With a `shape` [T, H, W, 3], a clip of another one is refused before its pixels are unpacked.
    """
    with (
        _image_errors(f"These {len(data)} bytes are not an encoded clip"),
        Image.open(io.BytesIO(data), formats=["PNG"]) as image,
    ):
        LIMITS.check("A clip", decoded_megabytes=3 * image.width * image.height / 2**20)
        if shape is not None and (image.height, image.width) != (shape[0] * shape[1], shape[2]):
            raise MediaError(f"A clip has {image.height}x{image.width} pixels in all, which is not the shape {shape}.")
        if image.mode != "RGB":
            raise MediaError(f"A clip has the colours {image.mode}, not RGB.")
        image.load()
        frames = int(image.info["frames"])
        if frames < 1 or image.height % frames:
            raise MediaError(f"A clip of {image.height} rows cannot have {frames} frames.")
        clip = np.array(image).reshape(frames, image.height // frames, image.width, 3)
    if shape is not None and clip.shape != tuple(shape):
        raise MediaError(f"A clip has the shape {clip.shape}, not {tuple(shape)}.")
    return clip


# ---- contact sheets


def contact_sheet(
    videos: Sequence[UInt8[np.ndarray, "t h w 3"]] | UInt8[np.ndarray, "n t h w 3"],
    path: str | os.PathLike,
    labels: Sequence[str] | None = None,
    columns: int = 9,
    across: int = 1,
    note: str = "",
) -> None:
    """Writes a PNG with one row of `columns` evenly spaced frames per clip, its label above (see `draw_contact_sheet`), and a `note`."""
    from walt.data.contact_sheet import draw_contact_sheet

    info = PngImagePlugin.PngInfo()
    if note:
        info.add_text("comment", note)
    with atomic_path(path) as temporary:
        draw_contact_sheet(videos, labels, columns=columns, across=across).save(temporary, "PNG", pnginfo=info)
