"""PSNR and SSIM (both on Y) of a model against bicubic and Lanczos, on degraded photos or on real LQ/HQ pairs.

    python scripts/measure_tiny.py degraded ../shared/photos/val            # degraded with srcli's own pipeline, fixed seed
    python scripts/measure_tiny.py pairs ../shared/photos/realsr-open/lq ../shared/photos/realsr-open/hq

The model runs as `srcli upscale` runs it: this script writes the LQ files, calls the command, and reads its PNG files back.
PSNR and SSIM are those of `srcli eval`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from srcli.images.fidelity import psnr_y, ssim_y
from srcli.training.degrade.draws import draw
from srcli.training.degrade.engine import degrade, from_levels, to_levels

SEED = 2026
METHODS = ("nearest", "bicubic", "lanczos", "model")


def scores(sr: npt.NDArray[np.uint8], hq: npt.NDArray[np.uint8]) -> tuple[float, float]:
    return psnr_y(sr, hq), ssim_y(sr, hq)


def write_degraded(photos: Path, lq_folder: Path, hq_folder: Path, crop: int) -> None:
    """Centre crops of at most `crop` a side, degraded; the seed is fixed by the file's place in the sorted list."""
    for index, path in enumerate(sorted(photos.iterdir())):
        photo = np.asarray(Image.open(path).convert("RGB"))
        height, width = (min(side, crop) // 4 * 4 for side in photo.shape[:2])
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        hq = photo[top : top + height, left : left + width]
        lq = degrade(from_levels(hq), draw(np.random.default_rng([SEED, index]), (height, width)))
        name = path.stem[:16] + ".png"
        Image.fromarray(hq).save(hq_folder / name)
        Image.fromarray(to_levels(lq)).save(lq_folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("degraded", "pairs"))
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--crop", type=int, default=1 << 20, help="largest side of the HQ photos; whole photos by default")
    parser.add_argument("--keep", type=Path, help="keep lq, hq and sr folders here")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        lq_folder, hq_folder, sr_folder = (work / name for name in ("lq", "hq", "sr"))
        if args.kind == "degraded":
            lq_folder.mkdir(parents=True, exist_ok=True)
            hq_folder.mkdir(parents=True, exist_ok=True)
            write_degraded(args.folders[0], lq_folder, hq_folder, args.crop)
        else:
            lq_folder, hq_folder = args.folders
        command = [sys.executable, "-m", "srcli", "-q", "upscale", str(lq_folder), "-o", str(sr_folder), "--overwrite"]
        subprocess.run([*command, "--format", "png", *args.options.split()], check=True)
        table = []
        for path in sorted(hq_folder.iterdir()):
            hq = Image.open(path).convert("RGB")
            lq = Image.open(lq_folder / path.name).convert("RGB")
            ways = {
                "nearest": lq.resize(hq.size, Image.Resampling.NEAREST),
                "bicubic": lq.resize(hq.size, Image.Resampling.BICUBIC),
                "lanczos": lq.resize(hq.size, Image.Resampling.LANCZOS),
                "model": Image.open(sr_folder / f"{path.stem}.png").convert("RGB"),
            }
            row = [scores(np.asarray(ways[name]), np.asarray(hq)) for name in METHODS]
            table.append(row)
            print(path.stem[:20].ljust(20), "  ".join(f"{p:6.2f} {s:.4f}" for p, s in row))
        mean = np.mean(np.array(table), axis=0)
        print("\nmean of", len(table), "images: PSNR (Y) dB, SSIM (Y)")
        for name, (psnr, ssim) in zip(METHODS, mean, strict=True):
            print(f"{name.ljust(8)} {psnr:6.2f} {ssim:.4f}  ({psnr - mean[1][0]:+.2f} dB, {ssim - mean[1][1]:+.4f})")


if __name__ == "__main__":
    main()
