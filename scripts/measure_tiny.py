"""PSNR and SSIM (both on Y) of a model against bicubic and Lanczos, on degraded photos or on real LQ/HQ pairs.

    python scripts/measure_tiny.py degraded ../shared/photos/val            # degraded with srcli's own pipeline, fixed seed
    python scripts/measure_tiny.py pairs ../shared/photos/realsr-open/lq ../shared/photos/realsr-open/hq

The model runs as `srcli upscale` runs it: this script writes the LQ files, calls the command, and reads its PNG files back.
PSNR and SSIM are those of `srcli eval`. Prints a line for each picture and the means of nearest, bicubic, Lanczos and the model.
Takes as long as upscaling the photos, and half a second for each of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

SEED = 2026


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("degraded", "pairs"), help="what the folders hold")
    parser.add_argument("folders", type=Path, nargs="+", help="degraded: one of photos; pairs: LQ and HQ, with the same names")
    parser.add_argument("--crop", type=int, default=1 << 20, help="largest side of the HQ photos; whole photos by default")
    parser.add_argument("--keep", type=Path, help="keep lq, hq and sr folders here")
    parser.add_argument("--options", default="", help="more options of `srcli upscale`, in one string")
    args = parser.parse_args()
    if len(args.folders) != (wanted := 1 if args.kind == "degraded" else 2):
        parser.error(f"`{args.kind}` takes {wanted} folder{'s' * (wanted > 1)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.keep or Path(temporary)
        lq_folder, hq_folder = args.folders if args.kind == "pairs" else (work / "lq", work / "hq")
        if args.kind == "degraded":
            write_degraded(args.folders[0], lq_folder, hq_folder, args.crop)
        command = [sys.executable, "-m", "srcli", "-q", "upscale", str(lq_folder), "-o", str(work / "sr"), "--overwrite"]
        subprocess.run([*command, "--format", "png", *args.options.split()], check=True)
        measure(lq_folder, hq_folder, work / "sr")


def write_degraded(photos: Path, lq_folder: Path, hq_folder: Path, crop: int) -> None:
    """Centre crops of at most `crop` a side, degraded; the seed is fixed by the file's place in the sorted list."""
    import numpy as np
    from PIL import Image

    from srcli.training.degrade.draws import draw
    from srcli.training.degrade.engine import degrade, from_levels, to_levels

    for folder in (lq_folder, hq_folder):
        folder.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(sorted(photos.iterdir())):
        photo = np.asarray(Image.open(path).convert("RGB"))
        height, width = (min(side, crop) // 4 * 4 for side in photo.shape[:2])
        top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
        hq = photo[top : top + height, left : left + width]
        lq = degrade(from_levels(hq), draw(np.random.default_rng([SEED, index]), (height, width)))
        name = path.stem[:16] + ".png"
        Image.fromarray(hq).save(hq_folder / name)
        Image.fromarray(to_levels(lq)).save(lq_folder / name)


def measure(lq_folder: Path, hq_folder: Path, sr_folder: Path) -> None:
    """Print what each way of enlarging reaches."""
    import numpy as np
    from PIL import Image

    from srcli.images.fidelity import psnr_y, ssim_y

    plain = {name: Image.Resampling[name.upper()] for name in ("nearest", "bicubic", "lanczos")}
    table = []
    for path in sorted(hq_folder.iterdir()):
        hq = Image.open(path).convert("RGB")
        lq = Image.open(lq_folder / path.name).convert("RGB")
        pictures = [lq.resize(hq.size, how) for how in plain.values()]
        pictures.append(Image.open(sr_folder / f"{path.stem}.png").convert("RGB"))
        row = [(psnr_y(sr, np.asarray(hq)), ssim_y(sr, np.asarray(hq))) for sr in map(np.asarray, pictures)]
        table.append(row)
        print(path.stem[:20].ljust(20), "  ".join(f"{p:6.2f} {s:.4f}" for p, s in row))
    mean = np.mean(np.array(table), axis=0)
    print("\nmean of", len(table), "images: PSNR (Y) dB, SSIM (Y)")
    for name, (psnr, ssim) in zip((*plain, "model"), mean, strict=True):
        print(f"{name.ljust(8)} {psnr:6.2f} {ssim:.4f}  ({psnr - mean[1][0]:+.2f} dB, {ssim - mean[1][1]:+.4f})")


if __name__ == "__main__":
    main()
