"""Peak memory of `srcli upscale`: against the length of a folder, and against the size of the output.

    python benchmarks/memory.py --short 8 --long 80 --size 640x480        # tiny: one picture's memory, or the folder's?
    python benchmarks/memory.py --outputs 1 4 16 --folder /tmp/full-size  # PiSA-SR at full size, random weights, by megapixels
    python benchmarks/memory.py --outputs 64 128 --folder /tmp/thin       # the same code with an eighth of the channels
    python benchmarks/memory.py --formats --inputs 1.5 6                  # tiny: by format, as a multiple of the decoded picture

Each run is a process of its own. Prints, of the host, the largest resident set (weights, program and libraries included; on a CPU
the network's working memory too), of a GPU the most that torch had allocated and reserved there. The thin network, of
`full_size.py /tmp/thin --divisor 8`, shows what grows with the picture and not with the network, at sizes that would take a CPU
hours at full width. On two cores the first example takes about 20 minutes, a megapixel at full size 10 to 80 seconds.
`--formats` takes off what a run over a picture of 64 x 64 pixels needs, and divides by height x width x channels x bytes of the
input. The dials of `tiny` are at 0, so that the network's own memory stays out of it, with that of its rows of tiles, and a
megapixel takes seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from full_size import make_model
from measuring import alone, host_gb, make_photos, run_srcli, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=8, help="photos in the short folder (%(default)s)")
    parser.add_argument("--long", type=int, default=80, help="photos in the long folder (%(default)s)")
    parser.add_argument("--size", default="640x480", help="of these photos, in pixels (%(default)s)")
    parser.add_argument("--outputs", type=float, nargs="+", help="megapixels of outputs instead, with sides as 3 to 2")
    parser.add_argument("--formats", action="store_true", help="by file format instead")
    parser.add_argument("--inputs", type=float, nargs="+", default=[1.5, 6], help="of these, megapixels (%(default)s)")
    parser.add_argument("--folder", type=Path, help="the random networks of full_size.py; made at full size if not there")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()
    options = args.options.split()
    if args.folder:
        options = ["--models-file", str(alone(make_model, args.folder)), "--model", "random", *options]
    if args.formats:
        by_format(args.inputs, options)
    elif args.outputs:
        by_output(args.outputs, options)
    else:
        by_folder(args, options)


def by_folder(args: argparse.Namespace, options: list[str]) -> None:
    width, height = map(int, args.size.split("x"))
    short, long = (peak(count, (width, height), options)["host"] for count in (args.short, args.long))
    print(f"{args.short} photos of {args.size}: {short:.2f} GB; {args.long} photos: {long:.2f} GB")
    print(f"ratio of peak memory, long folder / short folder: {long / short:.3f}")


def by_output(outputs: list[float], options: list[str]) -> None:
    for megapixels in outputs:
        height = round((megapixels * 1e6 / 1.5) ** 0.5 / 4)
        size = (round(1.5 * height), height)
        told = peak(1, size, options)
        line = f"{megapixels:g} MP ({4 * size[0]}x{4 * size[1]}): host {told['host']:.2f} GB"
        if told["device"]:
            line += f", device {told['device']:.2f} GB allocated, {told['reserved']:.2f} GB reserved"
        print(f"{line}; {told['seconds']:.0f} s with loading", flush=True)


def by_format(inputs: list[float], options: list[str]) -> None:
    options = ["--scale", "2", "--lambda-pixel", "0", "--lambda-semantic", "0", *options]
    for name in FILES:
        floor = peak_of(name, (64, 64), options)
        for megapixels in inputs:
            height = round((megapixels * 1e6 / 1.5) ** 0.5)
            size = (round(1.5 * height), height)
            taken, decoded = peak_of(name, size, options) - floor, size[0] * size[1] * 3 * FILES[name][1] / 1e9
            ratio = f"{taken / decoded:.1f} times the decoded picture"
            print(f"{name}, {size[0]}x{size[1]}: {floor:.2f} GB and {taken:.2f} more, {ratio}", flush=True)


FILES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "JPEG": ("jpg", 1, {}),
    "PNG": ("png", 1, {}),
    "TIFF": ("tif", 1, {}),
    "TIFF, deflated strips": ("tif", 1, {"compression": "zlib", "rowsperstrip": 64}),
    "TIFF, tiles": ("tif", 1, {"tile": (256, 256)}),
    "PNG of 16 bits": ("png", 2, {}),
    "TIFF of 16 bits": ("tif", 2, {}),
    "TIFF of 16 bits, deflated strips": ("tif", 2, {"compression": "zlib", "rowsperstrip": 64}),
    "TIFF of 16 bits, LZW strips": ("tif", 2, {"compression": "lzw", "rowsperstrip": 64}),
    "TIFF of 16 bits, tiles": ("tif", 2, {"tile": (256, 256)}),
    "TIFF of 16 bits, planar": ("tif", 2, {"planarconfig": "separate"}),
}
"""Suffix, bytes a channel, and what tifffile is told."""


def peak_of(name: str, size: tuple[int, int], options: list[str]) -> float:
    """Gigabytes of one run over one picture."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / f"photo.{FILES[name][0]}"
        alone(make_file, file, size, *FILES[name][1:])
        return alone(report, ["srcli", "-q", "upscale", str(file), "-o", f"{temporary}/out", *options])["host"]


def make_file(file: Path, size: tuple[int, int], depth: int, written: dict[str, Any]) -> None:
    """A smooth RGB picture of 8 or 16 bits."""
    import cv2
    import numpy as np
    import tifffile

    small = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    levels = cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)
    if depth == 2:
        levels = levels.astype(np.uint16) * 257
    if file.suffix != ".tif":
        cv2.imwrite(str(file), levels)
        return
    if "planarconfig" in written:
        levels = np.moveaxis(levels, -1, 0)
    tifffile.imwrite(file, levels, photometric="rgb", metadata=None, **written)


def peak(count: int, size: tuple[int, int], options: list[str]) -> dict[str, float]:
    """Gigabytes of one run over `count` smooth pictures of a size."""
    with tempfile.TemporaryDirectory() as temporary:
        photos = make_photos(Path(temporary) / "in", count, size)
        return alone(report, ["srcli", "-q", "upscale", str(photos), "-o", f"{temporary}/out", *options])


def report(words: list[str]) -> dict[str, float]:
    """Run srcli in this process, and what it took."""
    sys.argv = words
    seconds, _ = timed(run_srcli)
    import torch

    cuda = torch.cuda.is_available()
    return {
        "host": host_gb(),
        "device": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0,
        "reserved": torch.cuda.max_memory_reserved() / 1e9 if cuda else 0,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
