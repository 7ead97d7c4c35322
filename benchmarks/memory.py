"""Is memory bounded by the queue and one image, not by the folder? Peak memory of a long folder over that of a short one.

    python benchmarks/memory.py [--short 8] [--long 80] [--size 640x480]

Each run is a process of its own: `srcli upscale` on photos of one size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def peak_megabytes(count: int, size: tuple[int, int], options: list[str]) -> float:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "in"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for index in range(count):
            picture = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{index:04}.jpg")
        command = [sys.executable, "-m", "srcli", "-q", "upscale", str(folder), "-o", f"{temporary}/out", *options]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, command
        return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=8)
    parser.add_argument("--long", type=int, default=80)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    short, long = (peak_megabytes(count, (width, height), args.options.split()) for count in (args.short, args.long))
    print(f"{args.short} photos of {args.size}: {short:.0f} MB; {args.long} photos: {long:.0f} MB")
    print(f"ratio of peak memory, long folder / short folder: {long / short:.3f}")


if __name__ == "__main__":
    main()
