"""Networks of spandrel in srcli, against the plain call of the same network.

    python benchmarks/network.py                                   # realesrgan-x4plus: speed in one tile, fp32 and bf16
    python benchmarks/network.py --model 4x-some.safetensors --side 256
    python benchmarks/network.py --memory 16                       # peak memory at an output of 16 megapixels, with time
    python benchmarks/network.py --tiles 512 1024                  # how near tiles of that many output pixels are to the whole

Speed is the median of pairs, ours and the plain call in turn, of a square picture that makes one tile.
With `--memory` the picture goes through `srcli upscale` in a process of its own. x4plus takes a quarter of a second for each
thousand pixels of input on two cores, and tiles overlap: ten minutes for 16 megapixels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import alone, host_gb, make_photos, run_srcli, timed

if TYPE_CHECKING:
    from srcli.engine.mix import MixingEngine
    from srcli.images.canvas import Canvas

PAIRS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="realesrgan-x4plus", help="as of `srcli upscale` (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="of the input, in pixels (%(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], help="(%(default)s)")
    parser.add_argument("--device", default="auto", help="as of `srcli upscale` (%(default)s)")
    parser.add_argument("--tiles", type=int, nargs="+", help="sides of tiles, in output pixels, instead of the speed")
    parser.add_argument("--memory", type=float, help="megapixels of an output, instead of the speed")
    parser.add_argument("--photo", type=Path, help="a picture file, whose middle is taken; noise where there is none")
    args = parser.parse_args()
    if args.memory:
        for dtype in args.dtypes:
            print(alone(peak, args.model, args.device, dtype, args.memory), flush=True)
    elif args.tiles:
        compare_tiles(args)
    else:
        for dtype in args.dtypes:
            compare_speed(args, dtype)


def opened(args: argparse.Namespace, dtype: str, tile: int | None = None) -> MixingEngine:
    from srcli.config import UpscaleConfig
    from srcli.opening import complete, model_of, open_engine

    config = UpscaleConfig(("-",), Path(), model=args.model, device=args.device, dtype=dtype, tile=tile)
    spec = model_of(config)
    return open_engine(spec, config, [complete(spec, {})])


def picture(args: argparse.Namespace, scale: int) -> Canvas:
    import numpy as np
    from PIL import Image

    from srcli.images.canvas import Canvas

    if args.photo is None:
        return Canvas(np.random.default_rng(0).integers(0, 256, (args.side, args.side, 3), dtype=np.uint8), scale)
    image = Image.open(args.photo).convert("RGB")
    left, top = ((length - args.side) // 2 for length in image.size)
    return Canvas(np.array(image.crop((left, top, left + args.side, top + args.side))), scale)


def compare_speed(args: argparse.Namespace, dtype: str) -> None:
    import torch

    engine = opened(args, dtype)
    net = engine.restorer
    canvas = picture(args, net.native_scale)
    assert engine.tile_count(canvas.height, canvas.width) == 1
    lq = torch.from_numpy(canvas.at(1).crop(0, 0, args.side, args.side)).permute(2, 0, 1)[None].to(net.device, net.dtype)
    network = net._network  # type: ignore[attr-defined]

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            return network.answer(lq)[0].float().cpu()

    plain(), engine.restore([canvas])  # the first run pays for set-up
    pairs = [(timed(plain)[0], timed(lambda: engine.restore([canvas]))[0]) for _ in range(PAIRS)]
    ratio, seconds = statistics.median(one / ours for one, ours in pairs), statistics.median(ours for _, ours in pairs)
    side = args.side
    print(f"{net.name}, {side} x {side}, {net.dtype}: {seconds:.2f} s, {ratio:.3f} of the plain call's speed", flush=True)


def compare_tiles(args: argparse.Namespace) -> None:
    engine = opened(args, args.dtypes[0])
    canvas = picture(args, engine.restorer.native_scale)
    engine.limits = replace(engine.limits, tile_lat=1 << 20)
    seconds, (whole,) = timed(lambda: engine.restore([canvas]))
    for tile in args.tiles:
        engine.limits = opened(args, args.dtypes[0], tile).limits
        tiled, (result,) = timed(lambda: engine.restore([canvas]))
        decibels = -10 * ((result - whole).square().mean() / 4).log10()
        count = engine.tile_count(canvas.height, canvas.width)
        print(f"{count} tiles of {tile}: {decibels:.1f} dB from one piece, {tiled / seconds:.2f} of its time", flush=True)


def peak(model: str, device: str, dtype: str, megapixels: float) -> str:
    """Upscale one picture with sides as 3 to 2, in this process."""
    from srcli.rows.lookup import find_model

    scale = find_model(model).native_scale
    height = round((megapixels * 1e6 / 1.5) ** 0.5 / scale)
    with tempfile.TemporaryDirectory() as temporary:
        photos = make_photos(Path(temporary) / "in", 1, (round(1.5 * height), height))
        choices = ["--model", model, "--device", device, "--dtype", dtype]
        sys.argv = ["srcli", "-q", "upscale", str(photos), "-o", f"{temporary}/out", *choices]
        seconds, _ = timed(run_srcli)
    return f"{model}, {megapixels:g} MP, {dtype}: host {host_gb():.2f} GB; {seconds:.0f} s with loading"


if __name__ == "__main__":
    main()
