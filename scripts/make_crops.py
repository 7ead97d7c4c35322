"""Crops of photos and what the training degradation makes of them, as files, for a teacher too slow to be asked in training.

    python scripts/make_crops.py ~/photos bank --count 2000
    srcli upscale bank/lq -o bank/teacher --model realesrgan-x4plus --format png
    srcli train-semantic --data bank/teacher,lq=bank/lq,weight=2 --data ~/photos -o runs/semantic

Crop i is a function of (photos, degradation, seed, i), as in training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srcli.training.data.crops import Levels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="as `--data` of `srcli train-pixel`")
    parser.add_argument("out", type=Path, help="gets the folders hq and lq")
    parser.add_argument("--count", type=int, default=1000, help="crops")
    parser.add_argument("--crop", type=int, default=384, help="their side in output pixels, a multiple of 4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mild", type=float, default=0.6, help="share with the damage of cameras instead of Real-ESRGAN's")
    args = parser.parse_args()
    from srcli.config.degradation import Degradation
    from srcli.training.data.crops import CropSettings, TrainingCrops
    from srcli.training.data.sources import find_sources

    sources, _ = find_sources([args.photos], args.crop, 4, raw=True)
    how = Degradation(mild_probability=args.mild, mild_sharpening=1.0)
    crops = TrainingCrops(sources, CropSettings(args.crop, seed=args.seed, how=how, raw=True))
    for index in range(args.count):
        sample = crops[index]
        for name, levels in (("hq", sample.hq), ("lq", sample.lq)):
            assert levels is not None  # it is degraded at once
            write(levels, args.out / name / f"{index:05d}.png")


def write(levels: Levels, path: Path) -> None:
    """(H, W, 3), uint8, RGB, as a PNG file."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), levels[..., ::-1]):
        raise OSError(f"`{path}` was not written")


if __name__ == "__main__":
    main()
