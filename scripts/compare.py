"""A contact sheet: crops of inputs, enlarged bicubically, beside the same crops of srcli's outputs.

    python scripts/compare.py SHEET.png INPUT OUTPUT LEFT,TOP,SIDE [INPUT OUTPUT LEFT,TOP,SIDE ...]

The crop is a square, in pixels of the input. One row per pair, bicubic on the left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

CELL, GAP = 384, 8


def pair(source: Path, result: Path, crop: str) -> tuple[Image.Image, Image.Image]:
    left, top, side = map(int, crop.split(","))
    before, after = Image.open(source).convert("RGB"), Image.open(result).convert("RGB")
    scale = after.width / before.width
    box = tuple(round(edge * scale) for edge in (left, top, left + side, top + side))
    enlarged = before.resize(after.size, Image.Resampling.BICUBIC)
    size = (CELL, CELL)
    return enlarged.crop(box).resize(size, Image.Resampling.LANCZOS), after.crop(box).resize(size, Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("rows", nargs="+", help="INPUT OUTPUT LEFT,TOP,SIDE, again and again")
    parser.add_argument("--across", type=int, default=2, help="pairs in one line of the sheet")
    args = parser.parse_args()
    pairs = [pair(Path(a), Path(b), crop) for a, b, crop in zip(*[iter(args.rows)] * 3, strict=True)]
    lines = -(-len(pairs) // args.across)
    sheet = Image.new("RGB", (args.across * 2 * (CELL + GAP) - GAP, lines * (CELL + GAP) - GAP), "white")
    for index, (before, after) in enumerate(pairs):
        line, place = divmod(index, args.across)
        x, y = place * 2 * (CELL + GAP), line * (CELL + GAP)
        sheet.paste(before, (x, y))
        sheet.paste(after, (x + CELL + GAP, y))
    sheet.save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
