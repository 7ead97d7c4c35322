"""What tiles of the autoencoder change, and what they cost: PiSA-SR at full size with random weights on a real photo.

    python benchmarks/tiles.py PHOTO --folder /tmp/full-size     # 1024 x 1024 pixels in tiles of 512, against one piece
    python benchmarks/tiles.py PHOTO --folder /tmp/full-size --side 512 --tiles 256 128

The photo's middle, enlarged where the photo is smaller, is the input. Told are PSNR over all three channels between the picture
made in tiles and the one made in one piece, and the ratio of times. The UNet has the same tiles in both.

    autoencoder     both dials at 0, so latents come back as they are
    all             both dials at 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size import make_model
from PIL import Image, ImageOps
from speed import open_engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--folder", type=Path, help="keep the random networks here")
    parser.add_argument("--side", type=int, default=1024, help="of the output, in pixels")
    parser.add_argument("--tiles", type=int, nargs="+", default=[512], help="sides of the autoencoder's tiles, in pixels")
    parser.add_argument("--what", nargs="+", default=["autoencoder", "all"], choices=["autoencoder", "all"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        engine = open_engine("ours", make_model(args.folder or Path(temporary)), 1, args)
        picture = middle(args.photo, args.side)
        for what in args.what:
            dial = 0.0 if what == "autoencoder" else 1.0
            engine.restorer.mixture = engine.restorer.mix({"lambda_pixel": dial, "lambda_semantic": dial})
            compare(engine, picture, args.tiles, what)


def middle(photo: Path, side: int) -> torch.Tensor:
    """(3, side, side), RGB, float32 in [-1, 1]; a smaller photo is enlarged first."""
    image = Image.open(photo).convert("RGB")
    if min(image.size) < side:
        image = ImageOps.cover(image, (side, side), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + side, left : left + side]).permute(2, 0, 1) / 127.5 - 1


@torch.inference_mode()
def compare(engine: Any, picture: torch.Tensor, tiles: list[int], what: str) -> None:
    net, side = engine.restorer, picture.shape[-1]
    per_pixel = max(part.cell_bytes for part in (*net.encoder(), *net.decoder)) / net.factor**2
    limits = engine.limits
    results: dict[int | None, torch.Tensor] = {}
    seconds: dict[int | None, float] = {}
    for tile in (None, *tiles):
        engine.limits = replace(limits, part_bytes=None if tile is None else int(per_pixel * tile**2), least_part_bytes=0)
        start = time.perf_counter()
        results[tile] = engine.restore([picture])[0].float().cpu()
        seconds[tile] = time.perf_counter() - start
        if tile is None:
            print(f"{what}, {side} x {side}, {net.dtype}: in one piece {seconds[None]:.1f} s", flush=True)
            continue
        error = (results[tile].clamp(-1, 1) - results[None].clamp(-1, 1)).square().mean()
        print(
            f"{what}, tiles of {tile}: {-10 * torch.log10(error / 4):.1f} dB from one piece, "
            f"{seconds[tile] / seconds[None]:.2f} of its time",
            flush=True,
        )
    engine.limits = limits


if __name__ == "__main__":
    main()
