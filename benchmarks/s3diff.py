"""What S3Diff's choices cost: weights merged once a picture against matrices at run time, and one pass against two.

    python benchmarks/s3diff.py             # random weights of a small network
    python benchmarks/s3diff.py --full      # of SD-Turbo's size, which in float32 take 11 GB of memory on a CPU

Times are of one machine and of no others; the ratios are what counts.
"""

from __future__ import annotations

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="a network of SD-Turbo's size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--cells", type=int, default=64, help="side of the latent")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    from modulating import measure

    measure(args)


if __name__ == "__main__":
    main()
