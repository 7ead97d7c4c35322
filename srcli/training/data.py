"""Pairs for training: random crops of a folder's photos and what the degradation makes of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from srcli.errors import UsageError
from srcli.images.codec import decode
from srcli.images.files import INPUT_SUFFIXES
from srcli.images.resize import enlarge_bicubic
from srcli.training.degrade import Array, Degradation, degrade

CACHE_BYTES = 1 << 30


def find_photos(folder: Path) -> list[Path]:
    """All photos below `folder`, sorted by path.

    Raises:
        UsageError: the folder is missing or holds no photo.
    """
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder", "give a folder of photos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in INPUT_SUFFIXES)
    if not found:
        raise UsageError(f"no photos in `{folder}`", "give a folder of photos")
    return found


class DegradedCrops(Dataset[dict[str, torch.Tensor]]):
    """Sample i is a function of (photos, seed, i) alone, whichever worker draws it: a resumed run sees what it would have.

    Each sample holds
        lq: (3, crop, crop), RGB, float32 in [-1, 1]: degraded, shrunk, and resized back (bicubic, as at inference);
        hq: (3, crop, crop), RGB, float32 in [-1, 1].

    Args:
        photos: the files to draw from; smaller ones are enlarged to the crop.
        crop: side of the square crop in pixels, a multiple of `scale`.
        length: number of samples; photos are drawn in shuffled rounds.
        seed: of all chance.
        scale: the factor by which the degradation shrinks.
        how: the degradation's parameters.
        cache_bytes: decoded photos are kept up to this many bytes in each worker.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        crop: int,
        length: int,
        seed: int = 0,
        scale: int = 4,
        how: Degradation | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if crop % scale:
            raise UsageError(f"the crop `{crop}` is not a multiple of the scale `{scale}`")
        self.photos = list(photos)
        self.crop = crop
        self.length = length
        self.seed = seed
        self.scale = scale
        self.how = how or Degradation()
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[Path, npt.NDArray[np.uint8]] = OrderedDict()
        self._cached_bytes = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        lap, place = divmod(index, len(self.photos))
        order = np.random.default_rng([self.seed, 0, lap]).permutation(len(self.photos))
        rng = np.random.default_rng([self.seed, 1, index])
        hq = self._random_crop(self._photo(self.photos[order[place]]), rng)
        lq = degrade(hq, rng, self.scale, self.how)
        return {"lq": to_signed(enlarge_bicubic(lq, (self.crop, self.crop), 8)), "hq": to_signed(hq)}

    def _random_crop(self, photo: npt.NDArray[np.uint8], rng: np.random.Generator) -> Array:
        short = min(photo.shape[:2])
        if short < self.crop:
            size = [max(self.crop, round(side * self.crop / short)) for side in photo.shape[:2]]
            photo = np.asarray(cv2.resize(photo, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        top = int(rng.integers(photo.shape[0] - self.crop + 1))
        left = int(rng.integers(photo.shape[1] - self.crop + 1))
        hq = photo[top : top + self.crop, left : left + self.crop]
        if rng.random() < 0.5:
            hq = hq[:, ::-1]
        result: Array = np.ascontiguousarray(hq).astype(np.float32) / np.float32(255)
        return result

    def _photo(self, path: Path) -> npt.NDArray[np.uint8]:
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        photo: npt.NDArray[np.uint8] = np.rint(decode(path).rgb * np.float32(255)).astype(np.uint8)
        self._cache[path] = photo
        self._cached_bytes += photo.nbytes
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return photo


def to_signed(image: Array) -> torch.Tensor:
    """(H, W, 3) float32 in [0, 1] to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) * 2 - 1
