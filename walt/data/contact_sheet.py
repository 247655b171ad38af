"""Contact sheets: many clips on one picture, each a row of evenly spaced frames under its label."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from walt.data.media import MediaError, check_video

_BACKGROUND, _TEXT = (24, 24, 27), (228, 228, 231)
_MARGIN, _GAP, _ROW_GAP, _LABEL_HEIGHT, _FONT_SIZE = 16, 3, 12, 24, 15
_MIN_SIDE = 96  # frames smaller than this are enlarged by a whole factor


def draw_contact_sheet(
    videos: Sequence[UInt8[np.ndarray, "t h w 3"]] | UInt8[np.ndarray, "n t h w 3"],
    labels: Sequence[str] | None = None,
    *,
    columns: int = 9,
    across: int = 1,
) -> Image.Image:
    """Draws the sheet.

    Args:
      videos: clips of one frame size; their lengths may differ.
      labels: one text per clip, shortened to the width of its row.
      columns: frames shown of a clip (fewer if it has fewer); the first and the last are among them.
      across: clips side by side.

    Raises:
      MediaError: no clip, a wrong array, or another number of labels than of clips.
    """
    videos = list(videos)
    if not videos:
        raise MediaError("A contact sheet needs at least one clip.")
    if columns < 1 or across < 1:
        raise MediaError(f"columns and across must be at least 1, got {columns} and {across}.")
    if labels is not None and len(labels) != len(videos):
        raise MediaError(f"A contact sheet of {len(videos)} clips needs as many labels, got {len(labels)}.")
    for video in videos:
        check_video(video)
        if video.shape[1:] != videos[0].shape[1:]:
            raise MediaError(
                f"All clips of a sheet need one frame size, got {video.shape[1:3]} and {videos[0].shape[1:3]}."
            )
    strips = [_strip(video, columns) for video in videos]
    label_height = 0 if labels is None else _LABEL_HEIGHT
    width, height = max(s.width for s in strips), strips[0].height + label_height
    rows = -(-len(strips) // across)
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + across * width + (across - 1) * 2 * _ROW_GAP,
            2 * _MARGIN + rows * height + (rows - 1) * _ROW_GAP,
        ),
        _BACKGROUND,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for index, strip in enumerate(strips):
        row, column = divmod(index, across)
        left, top = _MARGIN + column * (width + 2 * _ROW_GAP), _MARGIN + row * (height + _ROW_GAP)
        if labels is not None:
            draw.text((left, top), _shorten(labels[index], draw, font, width), _TEXT, font)
        sheet.paste(strip, (left, top + label_height))
    return sheet


def _strip(video: np.ndarray, columns: int) -> Image.Image:
    """Evenly spaced frames side by side, enlarged without smoothing."""
    chosen = np.linspace(0, len(video) - 1, min(columns, len(video))).round().astype(int)
    scale = max(1, -(-_MIN_SIDE // min(video.shape[1:3])))
    height, width = video.shape[1] * scale, video.shape[2] * scale
    strip = Image.new("RGB", (len(chosen) * (width + _GAP) - _GAP, height), _BACKGROUND)
    for column, frame in enumerate(video[chosen]):
        pixels = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        strip.paste(Image.fromarray(pixels), (column * (width + _GAP), 0))
    return strip


def _shorten(text: str, draw: ImageDraw.ImageDraw, font, width: int) -> str:
    """The text on one line, cut with an ellipsis if it is wider than `width` pixels."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
