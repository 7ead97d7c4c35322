"""bf16 against fp32 on this device: speed and how far the results differ.

    python benchmarks/precision.py [--model tiny] [--side 768] [--runs 3]

Prints the ratio of their times, measured in turns in one process, and the PSNR between their results (above 50 dB nobody sees
the difference).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from srcli.config import UpscaleConfig
from srcli.opening import open_stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    engines = {name: open_stream(UpscaleConfig((".",), Path(), args.model, dtype=name)).engine for name in ("fp32", "bf16")}
    small = torch.rand(1, 3, args.side // 8, args.side // 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = torch.nn.functional.interpolate(small, size=(args.side, args.side), mode="bicubic")[0].clamp(-1, 1)
    seconds = dict.fromkeys(engines, float("inf"))
    results = {}
    for _ in range(args.runs + 1):  # the first round is set-up
        for name, engine in engines.items():
            start = time.perf_counter()
            (results[name],) = engine.restore([picture])
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    error = (results["fp32"] - results["bf16"]).square().mean() / 4
    print(", ".join(f"{name} {s:.3f} s ({args.side**2 / 1e6 / s:.2f} MP/s)" for name, s in seconds.items()))
    print(f"PSNR of bf16 against fp32: {-10 * torch.log10(error):.1f} dB")
    print(f"ratio of times, fp32 / bf16: {seconds['fp32'] / seconds['bf16']:.2f}")


if __name__ == "__main__":
    main()
