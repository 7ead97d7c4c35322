"""bf16 against fp32 on this device: speed and how far the results differ.

    python benchmarks/precision.py --model tiny --side 768 --runs 3

Prints the ratio of their times, measured in turns in one process, and the PSNR between their results (above 50 dB nobody sees
the difference). Takes about half a minute with `tiny` on two cores.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from measuring import timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a row of models.toml (%(default)s)")
    parser.add_argument("--side", type=int, default=768, help="of the output, in pixels (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each, after one for set-up; the fastest counts (%(default)s)")
    compare(parser.parse_args())


def compare(args: argparse.Namespace) -> None:
    import torch

    from srcli.config import UpscaleConfig
    from srcli.opening import model_of, open_stream

    configs = [UpscaleConfig((".",), Path(), args.model, dtype=name) for name in ("fp32", "bf16")]
    engines = {config.dtype: open_stream(config, model_of(config)).engine for config in configs}
    small = torch.rand(1, 3, args.side // 8, args.side // 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = torch.nn.functional.interpolate(small, size=(args.side, args.side), mode="bicubic")[0].clamp(-1, 1)
    results = {name: engine.restore([picture])[0] for name, engine in engines.items()}  # set-up
    seconds = dict.fromkeys(engines, float("inf"))
    for _ in range(args.runs):
        for name, engine in engines.items():
            seconds[name] = min(seconds[name], timed(partial(engine.restore, [picture]))[0])
    error = (results["fp32"] - results["bf16"]).square().mean() / 4
    print(", ".join(f"{name} {s:.3f} s ({args.side**2 / 1e6 / s:.2f} MP/s)" for name, s in seconds.items()))
    print(f"PSNR of bf16 against fp32: {-10 * torch.log10(error):.1f} dB")
    print(f"ratio of times, fp32 / bf16: {seconds['fp32'] / seconds['bf16']:.2f}")


if __name__ == "__main__":
    main()
