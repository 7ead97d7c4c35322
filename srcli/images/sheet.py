"""Contact sheets: rows of equally large pictures under headings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from srcli.images.codec import Picture, encode

Levels = npt.NDArray[np.uint8]

GAP_PX = 4
_TEXT_PX = 14
_GRAY = (40, 40, 40)


def make_sheet(rows: Sequence[Sequence[Levels]], headings: Sequence[str]) -> Levels:
    """Pictures side by side, rows below each other, a heading above each column.

    Args:
        rows: pictures (H, W, 3), uint8, RGB, all of one size; each row has as many as there are headings.
        headings: of the columns.

    Returns:
        (H', W', 3), uint8, RGB.
    """
    height, width = rows[0][0].shape[:2]
    top = _TEXT_PX + 2 * GAP_PX
    size = (len(headings) * (width + GAP_PX) + GAP_PX, top + len(rows) * (height + GAP_PX))
    sheet = Image.new("RGB", size, _GRAY)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_PX)
    for column, heading in enumerate(headings):
        left = GAP_PX + column * (width + GAP_PX)
        pen.text((left, GAP_PX // 2), _fitted(heading, width, font), fill=(230, 230, 230), font=font)
        for number, row in enumerate(rows):
            sheet.paste(Image.fromarray(row[column]), (left, top + number * (height + GAP_PX)))
    return np.asarray(sheet)


def save_sheet(sheet: Levels, path: Path) -> None:
    """Write a sheet as PNG, whole or not at all.

    Args:
        sheet: (H, W, 3), uint8, RGB.
        path: the file to write; missing folders are made.

    Raises:
        ImageError: it cannot be written (full disk, no permission).
    """
    encode(Picture(sheet), path, "png", 100)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-1]
    return text
