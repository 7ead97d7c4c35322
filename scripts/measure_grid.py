"""How much of a grid of 4 pixels pictures show: energy at the patch frequency against its neighbours.

    python scripts/measure_grid.py ../shared/photos/realsr-open/hq runs/sr-old runs/sr-new

Steps at patch borders may go up or down, so their size counts: |difference| of the luma along rows, averaged over strips of 32
rows; likewise along columns. A grid of period P puts energy at exactly the frequencies k / P of that profile, where photos have a
smooth spectrum. Told is, in dB, the energy in these bins over the mean of the bins around them. 0 is no grid; HQ photos show what
JPEG files and chance do. Bicubic enlargement by 4 has a period of its own, about 13 dB: compare pictures of like sharpness.
Prints a line for each folder, its mean and its largest; takes a second for ten pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

PERIOD = 4
_STRIP = 32
_NEAR, _FAR = 2, 12
"""The neighbours: so many bins away, at least and at most."""


def grid_db(picture: npt.NDArray[np.uint8]) -> float:
    """The mean over both axes and all multiples of the patch frequency, in dB; (H, W, 3), RGB."""
    from srcli.images.fidelity import luma

    brightness = luma(picture)
    return float(np.mean([_along_rows(brightness), _along_rows(brightness.T)]))


def _along_rows(plane: npt.NDArray[np.floating]) -> float:
    width = (plane.shape[1] - 1) // PERIOD * PERIOD
    height = len(plane) // _STRIP * _STRIP
    steps = np.abs(np.diff(plane[:height], axis=1)[:, :width]).reshape(-1, _STRIP, width).mean(1)
    window = np.hanning(width + 1)[:width]
    # a Hann window spreads a line over three bins, gathered below; without it, the picture's ends would leak everywhere
    power = (np.abs(np.fft.rfft((steps - steps.mean(1, keepdims=True)) * window, axis=1)) ** 2).mean(0)
    ratios = []
    for multiple in range(1, PERIOD // 2 + 1):
        centre = width * multiple // PERIOD
        around = [centre + side * distance for distance in range(_NEAR, _FAR + 1) for side in (-1, 1)]
        neighbours = power[[place for place in around if 0 < place < len(power)]].mean()
        line = power[centre - 1 : min(centre + 2, len(power))].mean()
        ratios.append(10 * np.log10(line / neighbours))
    return float(np.mean(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of pictures, and nothing else")
    args = parser.parse_args()
    from PIL import Image

    for folder in args.folders:
        pictures = [path for path in sorted(folder.iterdir()) if path.is_file()]
        found = np.array([grid_db(np.asarray(Image.open(path).convert("RGB"))) for path in pictures])
        print(f"{folder}: mean {found.mean():+.2f} dB, largest {found.max():+.2f} dB, of {len(found)} pictures")


if __name__ == "__main__":
    main()
