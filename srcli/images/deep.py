"""Pictures of more than 8 bits in formats of which Pillow gives 8: AVIF, HEIF, JPEG 2000, PPM."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
from functools import cache
from typing import Any

import cv2
import numpy as np

from srcli.images.levels import Levels

_OPENCV_SUFFIX = {"avif": ".avif", "jpeg2000": ".jp2", "ppm": ".ppm"}
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEAD = re.compile(rb"P[36]" + _GAP + rb"\d+" + _GAP + rb"\d+" + _GAP + rb"(\d{1,5})\s")


@cache
def reads(format: str) -> bool:
    """Whether what is installed gives all bits of a format, which is named as in `About`."""
    if format == "heif":
        return importlib.util.find_spec("pillow_heif") is not None
    suffix = _OPENCV_SUFFIX.get(format)
    return suffix is not None and bool(cv2.haveImageWriter(suffix))  # there is no asking for readers by suffix


def ppm_top(head: bytes) -> int:
    """The largest level of a PPM in colour; 0 of other files."""
    found = _PPM_HEAD.match(head)
    return int(found[1]) if found else 0


def read(format: str, data: bytes, top: int, mode: str) -> Levels:
    """Decode the first picture, turned no more than Pillow turns it.

    Args:
        format: one that `reads`.
        data: the whole file.
        top: its largest level, 256 to 65535.
        mode: of the picture as Pillow has it: L, LA, RGB or RGBA.

    Returns:
        (H, W, C) uint16 in full range, with the channels of `mode`.

    Raises:
        ValueError: the file is damaged.
    """
    stored = _of_libheif(data, top.bit_length()) if format == "heif" else _of_opencv(data)
    if top < 65535:
        table = np.rint(np.arange(top + 1) * (65535 / top)).astype(np.uint16)
        stored = table[np.minimum(stored, top)]
    if stored.shape[2] > len(mode):  # gray as three channels
        stored = stored[..., [0, 3][: len(mode)] if len(mode) <= 2 else [0, 1, 2]]
    if stored.shape[2] != len(mode):
        raise ValueError("broken data stream")
    return stored


def _of_opencv(data: bytes) -> Levels:
    decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if decoded is None or decoded.dtype != np.uint16:
        raise ValueError("broken data stream")
    levels: Levels = decoded.reshape(*decoded.shape[:2], -1)
    return levels if levels.shape[2] < 3 else levels[..., [2, 1, 0, 3][: levels.shape[2]]]


def _of_libheif(data: bytes, bits: int) -> Levels:
    heif = importlib.import_module("pillow_heif").open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    levels: Levels = np.asarray(heif[heif.primary_index])
    if levels.dtype != np.uint16:
        raise ValueError("broken data stream")
    low: Levels = levels.reshape(*levels.shape[:2], -1) >> np.uint16(16 - bits)  # it is given in the upper bits
    return low
