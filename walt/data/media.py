"""Video and image files, clips as bytes, and contact sheets. Pixels are uint8 [T, H, W, 3] at every border of this file."""

import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image


class MediaError(ValueError):
    """A media file or clip that cannot be read or written; the message names it and what is wrong."""


def encode_clip(video: UInt8[np.ndarray, "t h w 3"]) -> bytes:
    """A clip as lossless bytes: a PNG of its frames stacked downwards, with their number in the header text."""
    check_video(video)
    frames, height, width, _ = video.shape
    file = io.BytesIO()
    # Level 3 costs half the time of the default for 3 % more bytes on game footage.
    Image.fromarray(video.reshape(frames * height, width, 3)).save(file, "PNG", compress_level=3, pnginfo=_frames(frames))
    return file.getvalue()


def decode_clip(data: bytes) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip that `encode_clip` made bytes of; MediaError if they are anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            frames = int(image.info["frames"])
            pixels = np.array(image)
        return pixels.reshape(frames, pixels.shape[0] // frames, pixels.shape[1], 3)
    except (OSError, KeyError, ValueError, SyntaxError) as error:
        raise MediaError(f"These {len(data)} bytes are not an encoded clip: {error}") from error


def check_video(video: np.ndarray) -> None:
    """Raises MediaError unless the array is a non-empty uint8 [T, H, W, 3]."""
    if not isinstance(video, np.ndarray) or video.dtype != np.uint8:
        raise MediaError(f"A video must be a uint8 array, got {getattr(video, 'dtype', type(video).__name__)}.")
    if video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise MediaError(f"A video must have the shape [frames, height, width, 3], got {list(video.shape)}.")


def _frames(count: int):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("frames", str(count))
    return info
