"""What a file says of its colours beside an ICC profile, as an ICC profile, which every format that is written can carry."""

from __future__ import annotations

import math
import struct
from typing import BinaryIO

import numpy as np
from PIL import Image

from srcli.images.boxes import Facts
from srcli.images.cicp import Color, color_of
from srcli.images.profiles import SRGB, SRGB_CURVE, Chromaticities, gamma_curve, gray_profile, rgb_profile

_CLOSE = 0.002  # chromaticities that are sRGB's, rounded by whoever wrote them
_SRGB_GAMMA = (0.44, 0.47)  # 1/2.2 and what comes near is taken for sRGB's curve (PNG, third edition, 13.13)
_BITMAP_HEAD_BYTES = 14
_CALIBRATED, _LINKED, _EMBEDDED = 0, 0x4C494E4B, 0x4D424544
_ENUMERATED = {16: "sRGB", 17: "gray", 18: "sYCC"}
_ROMM: Chromaticities = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
_ROMM_NUMBER = 21
_WHITE_POINT, _PRIMARIES = 318, 319
_ADOBE_RGB: Chromaticities = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_ADOBE_GAMMA = 2 + 51 / 256
_EXIF_IFD, _INTEROP_IFD, _INTEROP_INDEX = 0x8769, 0xA005, 1


def of_png(chunks: dict[bytes, bytes], icc_profile: bytes | None, *, gray: bool) -> Color:
    """Of a PNG, whose chunks go before each other in this order: cICP, iCCP, sRGB, gAMA and cHRM (third edition, 4.3).

    Args:
        chunks: kind -> content of those four.
        icc_profile: that of iCCP, unpacked.
        gray: whether its pixels have one channel.
    """
    if len(body := chunks.get(b"cICP", b"")) == 4:
        return color_of(body[0], body[1], full_range=body[3] == 1, gray=gray)
    if icc_profile is not None or b"sRGB" in chunks:
        return Color(icc_profile)
    gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 1e5 if len(chunks.get(b"gAMA", b"")) == 4 else 0.0
    colors = SRGB
    if len(body := chunks.get(b"cHRM", b"")) == 32 and not gray:
        colors = tuple(value / 1e5 for value in struct.unpack(">8I", body))
    return _calibrated(colors, [1 / gamma if gamma else 0.0], gray=gray)


def of_bitmap(file: BinaryIO, *, bare: bool, gray: bool) -> Color:
    """Of a BMP, whose later headers have colours: [MS-WMF] 2.2.2.4 and 2.2.2.5.

    Args:
        file: a BMP, or, where it is `bare`, a DIB, which lacks the file's header.
        bare: as said.
        gray: whether its pixels have one channel.
    """
    start = 0 if bare else _BITMAP_HEAD_BYTES
    file.seek(start)
    head = file.read(124)
    size = int.from_bytes(head[:4], "little")
    if len(head) < 108 or size < 108:
        return Color()
    (kind,) = struct.unpack_from("<I", head, 56)
    if kind == _CALIBRATED:
        return _of_endpoints(head, gray=gray)
    if size >= 124 and kind in (_EMBEDDED, _LINKED):
        if kind == _LINKED:
            return Color(None, "its colour profile is in another file, and is left out")
        at, count = struct.unpack_from("<II", head, 112)
        file.seek(start + at)
        return Color(file.read(min(count, 1 << 26)) or None)
    return Color()


def of_tiff(tags: Image.Exif) -> Color:
    """Of a TIFF without a profile: WhitePoint and PrimaryChromaticities (TIFF 6.0, section 20), or what a camera says."""
    try:
        values = [float(each) for tag in (_WHITE_POINT, _PRIMARIES) for each in tags.get(tag, ())]
    except (TypeError, ValueError, ZeroDivisionError):
        values = []
    if len(values) == 8:
        return _calibrated(tuple(values), [0.0], gray=False)  # type: ignore[arg-type]
    return Color(of_exif(tags))


def of_exif(tags: Image.Exif) -> bytes | None:
    """The profile of Adobe RGB, where a camera says no more than "R03" (DCF 2.0, "option file"); None elsewhere."""
    try:
        link = tags.get_ifd(_EXIF_IFD).get(_INTEROP_IFD)
        index = link.get(_INTEROP_INDEX) if isinstance(link, dict) else tags.get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX)
    except Exception:  # Pillow fails in many ways on broken tags, and metadata must not cost the image
        return None
    text = index.decode("latin-1") if isinstance(index, bytes) else str(index)
    return rgb_profile("Adobe RGB (1998)", _ADOBE_RGB, [gamma_curve(_ADOBE_GAMMA)]) if text.startswith("R03") else None


def of_boxes(facts: Facts, icc_profile: bytes | None, *, gray: bool) -> Color:
    """Of an AVIF, HEIF or JPEG 2000 file: a profile that is there goes before numbers (ISO 23000-22, 7.3.6.4)."""
    profile = icc_profile or facts.icc_profile
    if profile is not None:
        return Color(profile)
    if facts.cicp is not None:
        return color_of(facts.cicp[0], facts.cicp[1], gray=gray)
    if facts.enumerated == _ROMM_NUMBER and not gray:  # ISO 22028-2
        return Color(rgb_profile("ROMM RGB", _ROMM, [gamma_curve(1.8)]))
    if facts.enumerated is not None and facts.enumerated not in _ENUMERATED:
        return Color(None, f"its colour space (JPEG 2000's number {facts.enumerated}) is not known here, and is taken for sRGB")
    return Color()


def _of_endpoints(head: bytes, *, gray: bool) -> Color:
    """Primaries as XYZ in 2.30 fixed point, exponents in 16.16; writers that know of neither leave zeros."""
    xyz = np.array(struct.unpack_from("<9i", head, 60)).reshape(3, 3) / (1 << 30)
    exponents = [value / (1 << 16) for value in struct.unpack_from("<3I", head, 96)]
    sums = xyz.sum(axis=1)
    if not (sums > 0).all():
        return _calibrated(SRGB, exponents, gray=gray)
    white = xyz.sum(axis=0)
    pairs = [white[:2] / white.sum(), *(xyz[:, :2] / sums[:, None])]
    return _calibrated(tuple(float(each) for pair in pairs for each in pair), exponents, gray=gray)  # type: ignore[arg-type]


def _calibrated(colors: Chromaticities, exponents: list[float], *, gray: bool) -> Color:
    """Primaries and exponents, each 0 where it is not said; what is sRGB within rounding needs no profile."""
    same = all(math.isclose(one, other, abs_tol=_CLOSE) for one, other in zip(colors, SRGB, strict=True))
    usual = [not each or _SRGB_GAMMA[0] <= 1 / each <= _SRGB_GAMMA[1] for each in exponents]
    if all(usual) and (same or gray):
        return Color()
    curves = [SRGB_CURVE if is_usual else gamma_curve(each) for each, is_usual in zip(exponents, usual, strict=True)]
    try:
        if gray:
            return Color(gray_profile("Calibrated gray", curves[0]))
        return Color(rgb_profile("Calibrated RGB", SRGB if same else colors, curves))
    except (ValueError, struct.error):
        return Color(None, "its colours are told in a way that makes no sense, and are taken for sRGB")
