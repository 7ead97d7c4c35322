"""Contact sheets: every setting of one photo at a glance, one axis across and one up, input and reference beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from srcli.config.sweep import Crop
from srcli.evaluation.catalogue import MetricInfo
from srcli.evaluation.measure import value_text
from srcli.images.codec import Picture, encode
from srcli.images.sheet import save_sheet
from srcli.sweep.grid import Axis, Cell, Grid
from srcli.sweep.inputs import Photo
from srcli.sweep.picking import Values
from srcli.sweep.views import HQ, LQ, Views, thumbnail

U8 = npt.NDArray[np.uint8]
MAX_SIDE_PX = 8_000
"""Of a sheet: where a grid is too large for it, its pictures are smaller."""
_QUALITY = 90
"""With full chroma."""
_GAP, _TEXT, _LINE = 5, 13, 18
_BACKGROUND, _INK, _FAINT, _FRAME = (24, 24, 27), (240, 240, 240), (165, 165, 170), (255, 190, 40)


@dataclass(frozen=True)
class Sheet:
    """One sheet: a photo or a crop of it, over one plane of the grid."""

    views: Views
    photo: Photo
    rows: Sequence[Sequence[Cell]]
    """From the top."""
    plane: str = ""
    """The values of further axes; empty where there are none."""
    crop: Crop | None = None

    @property
    def title(self) -> str:
        """`city/night · timestep=100 · crop 0,0,64,64`."""
        crop = f"crop {self.crop.text}" if self.crop is not None else ""
        return " · ".join(text for text in (self.photo.name, self.plane, crop) if text)

    @property
    def path(self) -> Path:
        """PNG; the name has no blanks and commas, for scripts."""
        crop = f"crop-{self.crop.text.replace(',', '-')}" if self.crop is not None else ""
        parts = (self.photo.name, self.plane, crop)
        return self.views.folder / "sheets" / f"{'.'.join(part for part in parts if part)}.png"

    @property
    def small(self) -> Path:
        """The same as JPEG, for the page."""
        return self.path.with_name(f"{self.path.stem}.jpg")

    def picture(self, key: str) -> Path:
        """The view that stands for a cell, `LQ` or `HQ`."""
        return self.views.whole(self.photo.name, key) if self.crop is None else self.views.crop(self.photo.name, key, self.crop)


def planned_sheets(grid: Grid, views: Views, photo: Photo) -> list[Sheet]:
    """A sheet of the whole photo and one of each crop, again for each plane of further axes."""
    crops = (None, *views.crops)
    return [Sheet(views, photo, rows, plane, crop) for plane, rows in grid.planes() for crop in crops]


def write_sheets(
    grid: Grid,
    views: Views,
    photo: Photo,
    values: Values,
    infos: Sequence[MetricInfo],
    best: Cell | None,
    cell_px: int,
    found: Mapping[str, float] | None = None,
) -> list[Sheet]:
    """Write all sheets of a photo.

    Args:
        grid: the cells; all of them have views.
        views: of the sweep.
        photo: whose.
        values: of the photo; shown below each picture as far as there is room.
        infos: of the metrics.
        best: the one whose picture gets a frame.
        cell_px: longer side of a picture, less where the sheet would be larger than `MAX_SIDE_PX`.
        found: what the model finds for the photo, by dials: marked on their axes.
    """
    captions = {cell.key: caption(values[cell.key], infos) for cell in grid.cells}
    sheets = planned_sheets(grid, views, photo)
    for sheet in sheets:
        box_px = min(cell_px, MAX_SIDE_PX // max(len(sheet.rows) + 1, len(sheet.rows[0]) + 2))
        drawn = _Drawing(grid, sheet, box_px, found or {}).draw(captions, best)
        save_sheet(drawn, sheet.path)
        _save_small(drawn, sheet.small)
    return sheets


def caption(values: Mapping[str, float], infos: Sequence[MetricInfo]) -> str:
    """`PSNR 24.31  SSIM 0.7012`."""
    return "  ".join(f"{info.label} {value_text(info.name, values[info.name])}" for info in infos if info.name in values)


def _save_small(sheet: U8, path: Path) -> None:
    encode(Picture(sheet), path, "jpeg", _QUALITY)


class _Drawing:
    """Measures of one sheet, and its drawing.

    Args:
        grid: for the axes.
        sheet: what to draw.
        box_px: longer side of a picture.
        found: what the model finds, by dials.
    """

    def __init__(self, grid: Grid, sheet: Sheet, box_px: int, found: Mapping[str, float]) -> None:
        self._found = found
        self._grid, self._sheet_of, self._rows = grid, sheet, sheet.rows
        self._height, self._width = thumbnail(sheet.picture(LQ), box_px).shape[:2]
        self._font = ImageFont.load_default(_TEXT)
        texts = grid.axes[grid.up].texts if grid.up is not None else ()
        self._left = self._width + 5 * _GAP + (_LINE + _GAP if texts else 0) + self._text_width(texts)
        self._top = _LINE + 3 * _GAP
        self._step = (self._height + _LINE + _GAP, self._width + _GAP)

    def draw(self, captions: Mapping[str, str], best: Cell | None) -> U8:
        beside = [("LQ", LQ)] if self._sheet_of.photo.hq is None else [("LQ", LQ), ("HQ", HQ)]
        below = 2 * (_LINE + _GAP) if self._grid.across is not None else 0
        height = self._top + max(len(self._rows), len(beside)) * self._step[0] + below
        self._sheet = Image.new("RGB", (self._left + len(self._rows[0]) * self._step[1] + _GAP, height), _BACKGROUND)
        self._pen = ImageDraw.Draw(self._sheet)
        told = [f"{name} {value:.3g} is found" for name, value in self._found.items()]
        self._write(" · ".join([self._sheet_of.title, *told]), (2 * _GAP, _GAP), self._sheet.width, _INK)
        for number, (name, key) in enumerate(beside):
            self._paste(key, 2 * _GAP, self._top + number * self._step[0], name)
            self._mark_crops(2 * _GAP, self._top + number * self._step[0])
        for number, row in enumerate(self._rows):
            for column, cell in enumerate(row):
                left, top = self._left + column * self._step[1], self._top + number * self._step[0]
                self._paste(cell.key, left, top, captions[cell.key], framed=cell == best)
        self._label_rows()
        self._label_columns()
        return np.asarray(self._sheet)

    def _mark_crops(self, left: int, top: int) -> None:
        """Where the crops are cut out, on a picture of the whole photo."""
        factor = self._width / self._sheet_of.photo.output_size[0]
        for crop in self._sheet_of.views.crops if self._sheet_of.crop is None else ():
            corner = (crop.left * factor, crop.top * factor)
            end = (corner[0] + crop.width * factor, corner[1] + crop.height * factor)
            self._pen.rectangle((left + corner[0], top + corner[1], left + end[0], top + end[1]), outline=_FRAME, width=2)

    def _paste(self, key: str, left: int, top: int, text: str, *, framed: bool = False) -> None:
        picture = Image.fromarray(thumbnail(self._sheet_of.picture(key), max(self._height, self._width)))
        self._sheet.paste(picture, (left, top))
        if framed:
            box = (left - 3, top - 3, left + picture.width + 2, top + picture.height + 2)
            self._pen.rectangle(box, outline=_FRAME, width=3)
        self._write(text, (left, top + self._height + 1), self._width, _FRAME if framed else _FAINT)

    def _label_rows(self) -> None:
        if self._grid.up is None:
            return
        axis = self._grid.axes[self._grid.up]
        for number, row in enumerate(self._rows):
            text = axis.texts[row[0].place[self._grid.up]]
            left = self._left - 2 * _GAP - self._font.getlength(text)
            self._pen.text((left, self._top + number * self._step[0] + self._height // 2 - _TEXT // 2), text, _INK, self._font)
        name = Image.new("RGB", (round(self._font.getlength(axis.name)) + 2, _LINE), _BACKGROUND)
        ImageDraw.Draw(name).text((0, 0), axis.name, _INK, self._font)
        turned = name.rotate(90, expand=True)
        middle = self._top + (len(self._rows) * self._step[0] - _GAP) // 2
        self._sheet.paste(turned, (self._width + 4 * _GAP, max(0, middle - turned.height // 2)))
        if (step := self._step_of(axis)) is not None:
            y = self._top + round((len(self._rows) - 1 - step) * self._step[0]) + self._height // 2
            self._pen.polygon([(self._left - 7, y - 5), (self._left - 7, y + 5), (self._left - 1, y)], _FRAME)

    def _step_of(self, axis: Axis) -> float | None:
        """Where the value that is found lies on an axis, in steps from its first value; None where it lies beyond."""
        value = self._found.get(axis.name, math.nan)
        pairs = enumerate(itertools.pairwise(axis.values))
        inside = (i + (value - low) / (high - low) for i, (low, high) in pairs if low <= value <= high)
        return next(inside, None)

    def _label_columns(self) -> None:
        if self._grid.across is None:
            return
        axis = self._grid.axes[self._grid.across]
        top = self._top + len(self._rows) * self._step[0]
        for column, cell in enumerate(self._rows[-1]):
            text = axis.texts[cell.place[self._grid.across]]
            left = self._left + column * self._step[1] + (self._width - self._font.getlength(text)) / 2
            self._pen.text((left, top), text, _INK, self._font)
        width = len(self._rows[-1]) * self._step[1] - _GAP
        left = self._left + (width - self._font.getlength(axis.name)) / 2
        self._pen.text((left, top + _LINE + _GAP), axis.name, _INK, self._font)
        if (step := self._step_of(axis)) is not None:
            x = self._left + round(step * self._step[1]) + self._width // 2
            self._pen.polygon([(x - 5, top - 1), (x + 5, top - 1), (x, top - 7)], _FRAME)

    def _write(self, text: str, place: tuple[int, int], width: int, ink: tuple[int, int, int]) -> None:
        """As much as fits; the built-in font has little beside ASCII."""
        text = "".join(sign if sign.isascii() or sign == "·" else "?" for sign in text)
        while text and self._font.getlength(text) > width:
            text = text[:-1] if "  " not in text else text.rsplit("  ", 1)[0]
        self._pen.text(place, text, ink, self._font)

    def _text_width(self, texts: Sequence[str]) -> int:
        return max((round(self._font.getlength(text)) for text in texts), default=0)
