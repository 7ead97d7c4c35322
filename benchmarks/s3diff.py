"""What S3Diff costs: its choices, and a step of training and whole runs beside PiSA-SR's.

    python benchmarks/s3diff.py                           # merged weights or matrices at run time; one pass or two; small network
    python benchmarks/s3diff.py --full                    # the same at SD-Turbo's size: 11 GB of memory on a CPU in float32
    python benchmarks/s3diff.py --folder /tmp/full-size   # training and `srcli upscale` at full size, beside PiSA-SR
    python benchmarks/s3diff.py --folder /tmp/thin --divisor 8    # the same code with an eighth of the channels

All weights are random. The networks of `--folder` are those of `full_size.py`, made if they are not there. Each run is a process
of its own. Times are of one machine and of no others; the ratios are what counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a network of SD-Turbo's size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--cells", type=int, default=64, help="side of the latent (%(default)s)")
    parser.add_argument("--times", type=int, default=3)
    whole = parser.add_argument_group("whole runs")
    whole.add_argument("--folder", type=Path, help="where the random networks are kept")
    whole.add_argument("--divisor", type=int, default=1, choices=(1, 2, 4, 8, 16, 32), help="channels over this (%(default)s)")
    whole.add_argument("--size", default="192x128", help="of the photo, in pixels (%(default)s)")
    whole.add_argument("--crop", type=int, default=512, help="of training, in pixels (%(default)s)")
    args = parser.parse_args()
    if args.folder:
        from whole_runs import compare

        compare(args)
    else:
        from modulating import measure

        measure(args)


if __name__ == "__main__":
    main()
