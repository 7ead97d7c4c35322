"""What a 7 x 7 sweep costs beside 49 separate runs.

    python benchmarks/sweep.py PHOTO --semantic DIR [--pixel DIR] [--model tiny] [--runs 7] [--dtype auto]

Two ratios, each of the time of 49 separate runs over that of one sweep:
- commands: `srcli upscale` for each pair, against one `srcli sweep` with its views, sheets and page (without metrics);
- model: the engine alone, with models loaded and the photo read, which is what the sweep's linearity saves.
Of the 49 runs, `--runs` are timed, spread over the grid, and their mean is taken times 49; `--runs 49` times all.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from srcli.engine.framing import prepare_canvas
from srcli.engine.mix import MixingEngine
from srcli.engine.restore import Engine, Limits, choose_limits
from srcli.families import load_restorer
from srcli.images.codec import decode
from srcli.networks.device import choose_device, choose_dtype, prepare
from srcli.protocol import LoadOptions, Settings
from srcli.rows.spec import ModelSpec, find_model
from srcli.store.adapter_files import replace_adapters

PIXEL = (0.0, 0.2, 0.5, 0.8, 1.0, 1.2, 1.5)
SEMANTIC = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
PAIRS = list(itertools.product(PIXEL, SEMANTIC))


def spread(count: int) -> list[tuple[float, float]]:
    """Pairs from all over the grid: no two in one row or column as long as there are at most seven."""
    order = sorted(range(49), key=lambda n: ((n % 7 - 3 * (n // 7)) % 7, n // 7))
    return [PAIRS[n] for n in order[:count]]


def command_seconds(args: argparse.Namespace, folder: Path, pairs: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """Seconds of the sweep, and of a separate run of each pair."""
    options = ["--model", args.model, "--dtype", args.dtype, "--semantic", str(args.semantic)]
    options += ["--pixel", str(args.pixel)] if args.pixel else []

    def timed(*arguments: object) -> float:
        start = time.perf_counter()
        command = [sys.executable, "-m", "srcli", "-q", *map(str, arguments), *options]
        subprocess.run(command, check=True)
        return time.perf_counter() - start

    lists = ["--lambda-pixel", ",".join(map(str, PIXEL)), "--lambda-semantic", ",".join(map(str, SEMANTIC))]
    sweep = timed("sweep", args.photo, "-o", folder / "sweep", *lists)
    runs = [
        timed("upscale", args.photo, "-o", folder / f"{a}-{b}.png", "--lambda-pixel", a, "--lambda-semantic", b) for a, b in pairs
    ]
    return sweep, runs


def model_seconds(args: argparse.Namespace, pairs: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """Likewise of the engine alone; the first of all runs is not timed, since it pays for set-up."""
    given = {"pixel": args.pixel, "semantic": args.semantic}
    spec = replace_adapters(find_model(args.model), {name: path for name, path in given.items() if path})
    device = choose_device("auto")
    dtype = choose_dtype(args.dtype, device)
    prepare(device)
    lq = prepare_canvas(decode(args.photo), spec.native_scale, spec.min_side)

    mixing = MixingEngine(*_loaded(spec, LoadOptions(device, dtype, settings=tuple(map(_settings, PAIRS)))))
    next(iter(mixing.restore_all(lq, [_settings(PAIRS[-1])])))
    start = time.perf_counter()
    count = sum(1 for _ in mixing.restore_all(lq, list(map(_settings, PAIRS))))
    sweep = time.perf_counter() - start
    assert count == 49
    del mixing
    runs = []
    for pixel, semantic in pairs:
        engine = Engine(*_loaded(spec, LoadOptions(device, dtype, pixel, semantic)))
        engine.restore([lq])
        start = time.perf_counter()
        engine.restore([lq])
        runs.append(time.perf_counter() - start)
    return sweep, runs


def _loaded(spec: ModelSpec, options: LoadOptions) -> tuple[Any, Limits]:
    restorer = load_restorer(spec, options)
    return restorer, choose_limits(restorer, None, None, None)


def _settings(pair: tuple[float, float]) -> Settings:
    return {"lambda_pixel": pair[0], "lambda_semantic": pair[1]}


def tell(name: str, sweep: float, runs: list[float]) -> None:
    mean = sum(runs) / len(runs)
    how = "49 separate runs" if len(runs) == 49 else f"49 separate runs, from the mean of {len(runs)},"
    print(f"{name}: {how} {49 * mean:.1f} s ({mean:.2f} s each); the sweep {sweep:.1f} s; ratio {49 * mean / sweep:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--semantic", type=Path, required=True)
    parser.add_argument("--pixel", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    pairs = spread(args.runs)
    tell("model", *model_seconds(args, pairs))
    with tempfile.TemporaryDirectory() as folder:
        tell("commands", *command_seconds(args, Path(folder), pairs))


if __name__ == "__main__":
    main()
