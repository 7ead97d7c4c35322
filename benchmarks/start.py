"""Time to the first picture: `srcli upscale` of one small photo against `import torch` alone.

    python benchmarks/start.py                                   # the default model, 64x64 pixels
    python benchmarks/start.py --options "--model osediff"       # another model; all options of `srcli upscale`

Both run in processes of their own with one thread, in turn, after one run of each that does not count: where a machine is busy,
threads that wait for each other burn time. Prints seconds of CPU, user and system, and the median of the pairs' ratios. Takes
half a minute.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import make_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="that count (%(default)s)")
    parser.add_argument("--size", default="64x64", help="of the photo, in pixels (%(default)s)")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        width, height = map(int, args.size.split("x"))
        photos = make_photos(Path(temporary) / "photos", 1, (width, height))
        upscale = ["-m", "srcli", "upscale", str(photos), "-o", f"{temporary}/out", "--overwrite", *args.options.split()]
        ratios = []
        for number in range(args.pairs + 1):
            alone, whole = cpu_seconds(["-c", "import torch"]), cpu_seconds(upscale)
            if number:
                ratios.append(whole / alone)
                print(f"import torch {alone:.2f} s, srcli upscale {whole:.2f} s: {ratios[-1]:.2f} times", flush=True)
    print(f"median of {args.pairs} pairs: {statistics.median(ratios):.2f} times")


def cpu_seconds(arguments: list[str]) -> float:
    """Of Python with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
