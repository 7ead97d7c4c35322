"""Strips of crops: input | bicubic | λ_sem 0 | default | reference, one row per photo.

    python scripts/make_strip.py STRIP.png LQ_FOLDER HQ_FOLDER NAME:LEFT,TOP,SIDE [NAME:LEFT,TOP,SIDE ...]

NAME is a file's name without its ending, in both folders; LEFT, TOP and SIDE are pixels of the input. The model's two columns
are made by `srcli upscale`; more of its options may follow in `--options`. `scripts/measure_tiny.py --keep` writes LQ files.
Do not publish strips of photos whose licence forbids it: of what srcli is measured on, `realsr-open` is for research only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL, GAP, HEAD = 320, 6, 22
COLUMNS = ("input", "bicubic", "lambda_semantic 0", "default", "reference")


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


def row(name: str, box: tuple[int, int, int], lq: Path, hq: Path, fidelity: Path, default: Path) -> list[Image.Image]:
    left, top, side = box
    source = Image.open(find(lq, name)).convert("RGB")
    reference = Image.open(find(hq, name)).convert("RGB")
    large = source.resize((source.width * 4, source.height * 4), Image.Resampling.BICUBIC)
    zoomed = tuple(4 * edge for edge in (left, top, left + side, top + side))
    plain = source.crop((left, top, left + side, top + side)).resize((CELL, CELL), Image.Resampling.NEAREST)
    pictures = [large, Image.open(find(fidelity, name)), Image.open(find(default, name)), reference]
    return [plain, *(picture.convert("RGB").crop(zoomed).resize((CELL, CELL), Image.Resampling.LANCZOS) for picture in pictures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strip", type=Path)
    parser.add_argument("lq", type=Path)
    parser.add_argument("hq", type=Path)
    parser.add_argument("crops", nargs="+", metavar="NAME:LEFT,TOP,SIDE")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()
    crops = {name: tuple(map(int, box.split(","))) for name, box in (each.rsplit(":", 1) for each in args.crops)}

    with tempfile.TemporaryDirectory() as work:
        inputs, options = [find(args.lq, name) for name in crops], args.options.split()
        default = upscale(inputs, Path(work) / "default", options)
        fidelity = upscale(inputs, Path(work) / "fidelity", [*options, "--lambda-semantic", "0"])
        rows = [row(name, box, args.lq, args.hq, fidelity, default) for name, box in crops.items()]

    strip = Image.new("RGB", (len(COLUMNS) * (CELL + GAP) - GAP, HEAD + len(rows) * (CELL + GAP) - GAP), "white")
    draw = ImageDraw.Draw(strip)
    for place, title in enumerate(COLUMNS):
        draw.text((place * (CELL + GAP) + CELL // 2, 2), title, fill="black", anchor="ma", font=ImageFont.load_default(16))
        for line, cells in enumerate(rows):
            strip.paste(cells[place], (place * (CELL + GAP), HEAD + line * (CELL + GAP)))
    strip.save(args.strip, optimize=True)


if __name__ == "__main__":
    main()
