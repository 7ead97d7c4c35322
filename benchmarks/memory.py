"""Peak memory of `srcli upscale`: against the length of a folder, and against the size of the output.

    python benchmarks/memory.py --short 8 --long 80 --size 640x480      # tiny: one picture's memory, or the folder's?
    python benchmarks/memory.py --outputs 1 4 16 --full /tmp/full-size  # PiSA-SR at full size, random weights, by megapixels
    python benchmarks/memory.py --outputs 64 128 --thin /tmp/thin       # the same code with an eighth of the channels

Each run is a process of its own. What it says of the host is the largest resident set (weights, program and libraries
included; on a CPU the network's working memory too), of a GPU the most that torch had allocated and reserved there. The thin
network shows what grows with the picture and not with the network, at sizes that would take a CPU hours at full width.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=8)
    parser.add_argument("--long", type=int, default=80)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--outputs", type=float, nargs="+", help="megapixels of outputs, with sides as 3 to 2")
    parser.add_argument("--full", type=Path, help="folder of the full-size random network; made if it is not there")
    parser.add_argument("--thin", type=Path, help="the same, thin")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        report(args.one)
    elif args.outputs:
        by_output(args)
    else:
        by_folder(args)


def by_folder(args: Any) -> None:
    width, height = map(int, args.size.split("x"))
    short, long = (peak(count, (width, height), args.options.split())["host"] for count in (args.short, args.long))
    print(f"{args.short} photos of {args.size}: {short:.2f} GB; {args.long} photos: {long:.2f} GB")
    print(f"ratio of peak memory, long folder / short folder: {long / short:.3f}")


def by_output(args: Any) -> None:
    from full_size import make_model

    options = args.options.split()
    if args.full or args.thin:
        registry = make_model(args.full or args.thin, divisor=8 if args.thin else 1)
        options = ["--models-file", str(registry), "--model", "random", *options]
    for megapixels in args.outputs:
        height = round((megapixels * 1e6 / 1.5) ** 0.5 / 4)
        size = (round(1.5 * height), height)
        told = peak(1, size, options)
        line = f"{megapixels:g} MP ({4 * size[0]}x{4 * size[1]}): host {told['host']:.2f} GB"
        if told["device"]:
            line += f", device {told['device']:.2f} GB allocated, {told['reserved']:.2f} GB reserved"
        print(f"{line}; {told['seconds']:.0f} s with loading", flush=True)


def peak(count: int, size: tuple[int, int], options: list[str]) -> dict[str, float]:
    """Gigabytes of one run over `count` smooth pictures of a size."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "in"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for index in range(count):
            small = rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index:04}.jpg", quality=95)
        words = ["-q", "upscale", str(folder), "-o", f"{temporary}/out", *options]
        done = subprocess.run([sys.executable, __file__, "--one", *words], stdout=subprocess.PIPE, text=True, check=True)
        told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return told


def report(words: list[str]) -> None:
    """Run srcli in this process and print what it took."""
    import torch

    from srcli.cli.main import main as srcli

    sys.argv = ["srcli", *words]
    start = time.perf_counter()
    try:
        srcli()
    except SystemExit as leave:
        if leave.code:
            raise
    cuda = torch.cuda.is_available()
    told = {
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "device": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0,
        "reserved": torch.cuda.max_memory_reserved() / 1e9 if cuda else 0,
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
