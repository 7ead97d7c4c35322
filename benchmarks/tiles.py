"""What tiles of the autoencoder change, and what they cost: PiSA-SR at full size with random weights on a real photo.

    python benchmarks/tiles.py PHOTO --folder /tmp/full-size     # 1024 x 1024 pixels in tiles of 512, against one piece
    python benchmarks/tiles.py PHOTO --folder /tmp/full-size --side 512 --tiles 256 128

The photo's middle, enlarged where the photo is smaller, is the input. Prints the PSNR over all three channels between the picture
made in tiles and the one made in one piece, and the ratio of times. The UNet has the same tiles in both. Takes a few minutes on
two cores in bf16, ten or more in float32.

    autoencoder     both dials at 0, so latents come back as they are
    all             both dials at 1
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from full_size import at, make_model, open_random
from measuring import alone, timed

if TYPE_CHECKING:
    import torch

    from srcli.engine.mix import MixingEngine

DIALS = {"autoencoder": (0.0, 0.0), "all": (1.0, 1.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, help="a picture file")
    parser.add_argument("--folder", type=Path, help="keep the random networks here; see full_size.py")
    parser.add_argument("--side", type=int, default=1024, help="of the output, in pixels (%(default)s)")
    parser.add_argument(
        "--tiles", type=int, nargs="+", default=[512], help="sides of the autoencoder's tiles, in pixels (%(default)s)"
    )
    parser.add_argument("--what", nargs="+", default=list(DIALS), choices=DIALS, help="see above (%(default)s)")
    parser.add_argument("--device", default="auto", help="as of `srcli upscale` (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="precision, as of `srcli upscale` (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare_all(alone(make_model, args.folder or Path(temporary)), args)


def compare_all(registry: Path, args: argparse.Namespace) -> None:
    from srcli.config import UpscaleConfig

    config = UpscaleConfig((str(args.photo),), Path(), batch=1, device=args.device, dtype=args.dtype)
    engine = open_random(registry, config, [DIALS[what] for what in args.what])
    picture = middle(args.photo, args.side)
    for what in args.what:
        engine.settings = at(*DIALS[what])
        compare(engine, picture, args.tiles, what)


def middle(photo: Path, side: int) -> torch.Tensor:
    """(3, side, side), RGB, float32 in [-1, 1]; a smaller photo is enlarged first."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    image = Image.open(photo).convert("RGB")
    if min(image.size) < side:
        image = ImageOps.cover(image, (side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1) / 127.5 - 1


def compare(engine: MixingEngine, picture: torch.Tensor, tiles: list[int], what: str) -> None:
    net, side, limits = engine.restorer, picture.shape[-1], engine.limits
    per_pixel = max(part.cell_bytes for part in (*net.encoder(), *net.decoder)) / net.factor**2
    engine.limits = replace(limits, part_bytes=None)
    seconds, (whole,) = timed(lambda: engine.restore([picture]))
    print(f"{what}, {side} x {side}, {net.dtype}: in one piece {seconds:.1f} s", flush=True)
    for tile in tiles:
        engine.limits = replace(limits, part_bytes=int(per_pixel * tile**2), least_part_bytes=0)
        tiled, (result,) = timed(lambda: engine.restore([picture]))
        decibels = -10 * ((result - whole).square().mean() / 4).log10()
        print(f"{what}, tiles of {tile}: {decibels:.1f} dB from one piece, {tiled / seconds:.2f} of its time", flush=True)
    engine.limits = limits


if __name__ == "__main__":
    main()
