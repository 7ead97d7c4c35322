"""Strips of crops: input | bicubic | λ_sem 0 | default | reference, or other settings and models; one row per photo.

    python scripts/make_strip.py STRIP.png LQ_FOLDER HQ_FOLDER NAME:LEFT,TOP,SIDE [NAME:LEFT,TOP,SIDE ...]

The columns in the middle are made by `srcli upscale`. Prints nothing; writes the strip as PNG. Takes as long as upscaling the
photos so often. HQ_FOLDER may be `-` for no reference. `scripts/measure_tiny.py --keep` writes LQ files. Do not publish strips of
photos whose licence forbids it: of what srcli is measured on, `realsr-open` is for research only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CELL, SCALE = 320, 4
COLUMNS = ("lambda_semantic 0=--lambda-semantic 0", "default=")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strip", type=Path, help="the PNG file to write")
    parser.add_argument("lq", type=Path, help="folder of the inputs")
    parser.add_argument("hq", type=Path, help="folder of the references, 4 times as large, of the same names")
    parser.add_argument(
        "crops", nargs="+", metavar="NAME:LEFT,TOP,SIDE", help="a file's name without its ending; a square in the input's pixels"
    )
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    parser.add_argument(
        "--column",
        action="append",
        metavar="TITLE=OPTIONS",
        help="a column by such options of `srcli upscale`; repeat it (those of the first line if not given)",
    )
    args = parser.parse_args()
    crops = {name: tuple(map(int, box.split(","))) for name, box in (each.rsplit(":", 1) for each in args.crops)}
    from srcli.images.sheet import make_sheet, save_sheet

    columns = dict(each.split("=", 1) for each in args.column or COLUMNS)
    reference = [] if str(args.hq) == "-" else [args.hq]
    with tempfile.TemporaryDirectory() as work:
        inputs = [find(args.lq, name) for name in crops]
        made = [
            upscale(inputs, Path(work) / str(number), [*args.options.split(), *options.split()])
            for number, options in enumerate(columns.values())
        ]
        large = (*made, *reference)
        rows = [row(box, find(args.lq, name), [find(folder, name) for folder in large]) for name, box in crops.items()]
    save_sheet(make_sheet(rows, ("input", "bicubic", *columns, *(["reference"] if reference else []))), args.strip)


def find(folder: Path, name: str) -> Path:
    """The one picture of that name, whatever its ending; realsr-open calls pairs X_LR4 and X_HR."""
    stems = (name, name.replace("_LR4", "_HR"))
    found = [path for path in sorted(folder.iterdir()) if path.stem in stems]
    if len(found) != 1:
        sys.exit(f"`{folder}` has {len(found)} pictures called `{name}`")
    return found[0]


def upscale(inputs: list[Path], folder: Path, options: list[str]) -> Path:
    command = [sys.executable, "-m", "srcli", "-q", "upscale", *map(str, inputs), "-o", str(folder), "--format", "png", *options]
    subprocess.run(command, check=True)
    return folder


def row(box: tuple[int, ...], lq: Path, large: list[Path]) -> list[npt.NDArray[np.uint8]]:
    """The crop of the input, of that enlarged, and of the large pictures: (CELL, CELL, 3), uint8 each."""
    import numpy as np
    from PIL import Image, ImageOps

    def cell(picture: Image.Image, zoom: int, filter: Image.Resampling) -> npt.NDArray[np.uint8]:
        left, top, side = (zoom * edge for edge in box)
        return np.asarray(picture.crop((left, top, left + side, top + side)).resize((CELL, CELL), filter))

    source = Image.open(lq).convert("RGB")
    pictures = [ImageOps.scale(source, SCALE, Image.Resampling.BICUBIC), *(Image.open(path).convert("RGB") for path in large)]
    cells = [cell(picture, SCALE, Image.Resampling.LANCZOS) for picture in pictures]
    return [cell(source, 1, Image.Resampling.NEAREST), *cells]


if __name__ == "__main__":
    main()
