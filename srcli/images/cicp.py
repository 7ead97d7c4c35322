"""Colours as numbers of ITU-T H.273 (CICP): what PNG's cICP chunk and the nclx boxes of AVIF and HEIF tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srcli.images.profiles import (
    SRGB,
    SRGB_CURVE,
    Chromaticities,
    gamma_curve,
    gray_profile,
    power_curve,
    rgb_profile,
    sampled_curve,
)

_D65, _C, _E, _DCI = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3), (0.314, 0.351)
PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB,
    4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    10: (*_E, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
"""H.273, table 2."""
_BT709 = power_curve(1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES = {
    **dict.fromkeys((1, 6, 11, 12, 14, 15), _BT709),
    4: gamma_curve(2.2),
    5: gamma_curve(2.8),
    7: power_curve(1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4.0, 0.0913),
    8: gamma_curve(1.0),
    13: SRGB_CURVE,
    17: gamma_curve(2.6),
}
"""H.273, table 3, solved for light."""
_UNSPECIFIED, _SRGB_TRANSFER, _PQ, _HLG = 2, 13, 16, 18
_HDR = {_PQ: "PQ", _HLG: "HLG"}
_CURVE_POINTS = 4096
_PAPER_WHITE = 203.0  # cd/m2, ITU-R BT.2408; 75 % of HLG


@dataclass(frozen=True)
class Color:
    """What colours a file's pixels have, as far as it says so.

    Attributes:
        profile: an ICC profile; None for those of sRGB, or where nothing is said.
        note: what is to be told, or an empty text.
    """

    profile: bytes | None = None
    note: str = ""


def color_of(primaries: int, transfer: int, *, full_range: bool = True, gray: bool = False) -> Color:
    """The profile that says the same.

    HDR is kept as it is: of its profile, the curve reaches from black to paper white, above which all is white; and it has the
    numbers themselves, by which programs that know HDR go instead (ICC.1:2022, 9.2.17).

    Args:
        primaries: a number of H.273's table 2.
        transfer: of its table 3.
        full_range: whether black is 0 and white the highest level, as whoever decodes YCbCr has seen to.
        gray: whether the pixels have one channel.
    """
    primaries = 1 if primaries == _UNSPECIFIED else primaries
    transfer = _SRGB_TRANSFER if transfer == _UNSPECIFIED else transfer
    if primaries not in PRIMARIES or transfer not in _CURVES.keys() | _HDR.keys():
        return Color(None, f"its colours ({primaries}/{transfer} of H.273) are not known here, and are taken for sRGB")
    note = "" if full_range else "its levels are those of video, black at 16 of 255, and are kept as they are"
    if transfer in _HDR:
        note = (
            f"it is HDR ({_HDR[transfer]}): its levels are kept, with a colour profile that says so; "
            "programs that know no HDR show all that is brighter than paper white as white"
        )
    if transfer == _SRGB_TRANSFER and (primaries == 1 or gray):
        return Color(None, note)
    name = f"H.273 {primaries}/{transfer}"
    curve = _hdr_curve(transfer) if transfer in _HDR else _CURVES[transfer]
    numbers = bytes([primaries, transfer, 0, full_range])
    profile = gray_profile(name, curve) if gray else rgb_profile(name, PRIMARIES[primaries], [curve], numbers)
    return Color(profile, note)


def _hdr_curve(transfer: int) -> bytes:
    """Light of encoded values, 1 for paper white: SMPTE ST 2084, and ITU-R BT.2100, table 5 (of a scene, without OOTF)."""
    encoded = np.linspace(0, 1, _CURVE_POINTS)
    if transfer == _PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = encoded ** (1 / m2)
        return sampled_curve(10_000 / _PAPER_WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(encoded <= 0.5, encoded**2 / 3, (np.exp((encoded - c) / a) + b) / 12)
    return sampled_curve(scene / ((np.exp((0.75 - c) / a) + b) / 12))
