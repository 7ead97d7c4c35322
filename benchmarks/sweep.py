"""What a 7 x 7 sweep costs beside 49 separate runs.

    python benchmarks/sweep.py samples/otter.jpg --runs 7
    python benchmarks/sweep.py PHOTO --pixel runs/pixel --semantic runs/semantic     # adapters of your own

Prints two ratios, each of the time of 49 separate runs over that of one sweep:
- model: the engine alone, with models loaded and the photo read, which is what the sweep's linearity saves;
- commands: `srcli upscale` for each pair, against one `srcli sweep` with its views, sheets and page (without metrics).
Of the 49 runs, RUNS are timed, spread over the grid, and their mean is taken times 49; `--runs 49` times all. Takes a few minutes
with `tiny` and a photo of 300 pixels a side, half of it for the starts of the commands.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from full_size import at
from measuring import timed

if TYPE_CHECKING:
    from srcli.config import UpscaleConfig

PIXEL = (0.0, 0.2, 0.5, 0.8, 1.0, 1.2, 1.5)
SEMANTIC = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
PAIRS = list(itertools.product(PIXEL, SEMANTIC))
Times = tuple[float, list[float]]
"""Seconds of the sweep, and of a separate run of each pair."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, help="a picture file")
    parser.add_argument("--pixel", type=Path, help="a pixel adapter in place of the model's own")
    parser.add_argument("--semantic", type=Path, help="a semantic adapter in place of the model's own")
    parser.add_argument("--model", default="tiny", help="a row of models.toml (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="precision, as of `srcli upscale` (%(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="separate runs that are timed, at most 49 (%(default)s)")
    args = parser.parse_args()
    adapters = {name: path for name, path in (("pixel", args.pixel), ("semantic", args.semantic)) if path}
    pairs = spread(args.runs)
    tell("model", *model_seconds(args, adapters, pairs))
    with tempfile.TemporaryDirectory() as folder:
        tell("commands", *command_seconds(args, adapters, pairs, Path(folder)))


def spread(count: int) -> list[tuple[float, float]]:
    """Pairs from all over the grid: no two in one row or column as long as there are at most seven."""
    order = sorted(range(49), key=lambda n: ((n % 7 - 3 * (n // 7)) % 7, n // 7))
    return [PAIRS[n] for n in order[:count]]


def model_seconds(args: argparse.Namespace, adapters: dict[str, Path], pairs: list[tuple[float, float]]) -> Times:
    """Of the engine alone."""
    from srcli.config import UpscaleConfig

    config = UpscaleConfig((str(args.photo),), Path(), args.model, adapters=adapters, dtype=args.dtype)
    return engine_seconds(config, PAIRS), [engine_seconds(config, [pair]) for pair in pairs]


def engine_seconds(config: UpscaleConfig, pairs: list[tuple[float, float]]) -> float:
    """Of the config's photo at some pairs, with the model loaded and set up."""
    from srcli.engine.framing import prepare_canvas
    from srcli.images.codec import decode
    from srcli.opening import model_of, open_engine

    settings = [at(*pair) for pair in pairs]
    engine = open_engine(model_of(config), config, settings)
    net = engine.restorer
    lq = prepare_canvas(decode(Path(config.inputs[0])), net.native_scale, net.min_side, net.enlargement)
    seconds = [timed(partial(deque, engine.restore_all(lq, some), 0))[0] for some in (settings[-1:], settings)]
    return seconds[-1]


def command_seconds(args: argparse.Namespace, adapters: dict[str, Path], pairs: list[tuple[float, float]], folder: Path) -> Times:
    options = ["--model", args.model, "--dtype", args.dtype]
    options += [str(word) for name, path in adapters.items() for word in (f"--{name}", path)]

    def seconds(command: str, output: str, pixel: object, semantic: object) -> float:
        words = [command, args.photo, "-o", folder / output, "--lambda-pixel", pixel, "--lambda-semantic", semantic]
        program = [sys.executable, "-m", "srcli", "-q", *map(str, words), *options]
        return timed(lambda: subprocess.run(program, check=True))[0]

    sweep = seconds("sweep", "sweep", ",".join(map(str, PIXEL)), ",".join(map(str, SEMANTIC)))
    return sweep, [seconds("upscale", f"{a}-{b}.png", a, b) for a, b in pairs]


def tell(name: str, sweep: float, runs: list[float]) -> None:
    mean = sum(runs) / len(runs)
    how = "49 separate runs" if len(runs) == 49 else f"49 separate runs, from the mean of {len(runs)},"
    print(f"{name}: {how} {49 * mean:.1f} s ({mean:.2f} s each); the sweep {sweep:.1f} s; ratio {49 * mean / sweep:.1f}")


if __name__ == "__main__":
    main()
