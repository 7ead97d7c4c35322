"""Peak memory of `srcli upscale`: against the length of a folder, and against the size of the output.

    python benchmarks/memory.py --short 8 --long 80 --size 640x480        # tiny: one picture's memory, or the folder's?
    python benchmarks/memory.py --outputs 1 4 16 --folder /tmp/full-size  # PiSA-SR at full size, random weights, by megapixels
    python benchmarks/memory.py --outputs 64 128 --folder /tmp/thin       # the same code with an eighth of the channels

Each run is a process of its own. Prints, of the host, the largest resident set (weights, program and libraries included; on a CPU
the network's working memory too), of a GPU the most that torch had allocated and reserved there. The thin network, of
`full_size.py /tmp/thin --divisor 8`, shows what grows with the picture and not with the network, at sizes that would take a CPU
hours at full width. On two cores the first example takes about 20 minutes, a megapixel at full size 10 to 80 seconds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from full_size import make_model
from measuring import alone, host_gb, make_photos, run_srcli, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=8, help="photos in the short folder (%(default)s)")
    parser.add_argument("--long", type=int, default=80, help="photos in the long folder (%(default)s)")
    parser.add_argument("--size", default="640x480", help="of these photos, in pixels (%(default)s)")
    parser.add_argument("--outputs", type=float, nargs="+", help="megapixels of outputs instead, with sides as 3 to 2")
    parser.add_argument("--folder", type=Path, help="the random networks of full_size.py; made at full size if not there")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()
    options = args.options.split()
    if args.folder:
        options = ["--models-file", str(alone(make_model, args.folder)), "--model", "random", *options]
    if args.outputs:
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
