"""ICC profiles from primaries and a transfer function, for files that tell their colours in another way.

A matrix/TRC display profile, or one of gray: ICC.1:2022, 7.2 (header), 8.3.3 and 8.4.2 (which tags), 9.2 (tags), 10 (types).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue (CIE 1931)."""

SRGB: Chromaticities = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""IEC 61966-2-1, and ITU-R BT.709."""

_D50 = np.array([0.9642, 1.0, 0.8249])  # of the profile connection space
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_HEADER_BYTES = 128
_DATE = (2024, 1, 1, 0, 0, 0)  # any: the same colours make the same bytes
_VERSION = 0x04400000  # 4.4, the first with the tag `cicp`


def gamma_curve(exponent: float) -> bytes:
    """Linear = encoded ** exponent."""
    return _parametric(0, exponent)


def power_curve(exponent: float, a: float, b: float, c: float, d: float) -> bytes:
    """Linear = (a * encoded + b) ** exponent from `d` on, and c * encoded below it."""
    return _parametric(3, exponent, a, b, c, d)


def sampled_curve(linear: npt.NDArray[np.float64]) -> bytes:
    """`linear` at encoded values that go evenly from 0 to 1; clipped to [0, 1]."""
    values = np.rint(np.clip(linear, 0, 1) * 65535).astype(">u2")
    return b"curv" + struct.pack(">4xI", len(values)) + values.tobytes()


def rgb_profile(name: str, colors: Chromaticities, curves: Sequence[bytes], cicp: bytes | None = None) -> bytes:
    """A profile for pixels of red, green and blue.

    Args:
        name: what programs show.
        colors: of its white and primaries; white is adapted to D50 by Bradford's matrix (ICC.1, annex E).
        curves: from encoded to linear, one for all or one for each.
        cicp: primaries, transfer, matrix and range as ITU-T H.273 numbers them, 4 bytes, for programs that know HDR.

    Raises:
        ValueError: these chromaticities span no colours.
    """
    x, y = np.array(colors[0::2]), np.array(colors[1::2])
    if not (y[0] > 0 and np.isfinite([x, y]).all()):
        raise ValueError("no such white")
    white = np.array([x[0], y[0], 1 - x[0] - y[0]]) / y[0]
    primaries = np.stack([x[1:], y[1:], 1 - x[1:] - y[1:]])
    try:
        to_xyz = primaries * np.linalg.solve(primaries, white)
    except np.linalg.LinAlgError as fault:
        raise ValueError("no such primaries") from fault
    adapted = np.linalg.solve(_BRADFORD, np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD)
    columns = (adapted @ to_xyz).T
    if not np.isfinite(columns).all() or np.abs(columns).max() > 8:
        raise ValueError("no such primaries")
    shown = list(curves) if len(curves) == 3 else list(curves) * 3
    tags = {b"chad": b"sf32" + struct.pack(">4x9i", *_fixed(adapted.ravel()))}
    tags |= {kind: _xyz(column) for kind, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    tags |= dict(zip((b"rTRC", b"gTRC", b"bTRC"), shown, strict=True))
    if cicp is not None:
        tags[b"cicp"] = b"cicp" + struct.pack(">4x4s", cicp)
    return _profile(name, b"RGB ", tags)


def gray_profile(name: str, curve: bytes) -> bytes:
    """A profile for pixels of one channel."""
    return _profile(name, b"GRAY", {b"kTRC": curve})


def _profile(name: str, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": _text(name), b"cprt": _text("No copyright, use freely"), b"wtpt": _xyz(_D50)} | tags
    table, body, places = b"", b"", {}
    start = _HEADER_BYTES + 4 + 12 * len(tags)
    for kind, content in tags.items():
        if content not in places:
            places[content] = start + len(body)
            body += content + b"\0" * (-len(content) % 4)
        table += struct.pack(">4sII", kind, places[content], len(content))
    size = start + len(body)
    head = struct.pack(">I4xI4s4s4s6H4s", size, _VERSION, b"mntr", space, b"XYZ ", *_DATE, b"acsp")
    head += b"\0" * 28 + struct.pack(">3i", *_fixed(_D50))
    return head.ljust(_HEADER_BYTES, b"\0") + struct.pack(">I", len(tags)) + table + body


def _parametric(kind: int, *values: float) -> bytes:
    return b"para" + struct.pack(f">4xH2x{len(values)}i", kind, *_fixed(values))


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *_fixed(values))


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">4xII2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _fixed(values: Sequence[float] | npt.NDArray[np.float64]) -> list[int]:
    """s15Fixed16Number."""
    return [round(float(value) * 65536) for value in values]


SRGB_CURVE = power_curve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""IEC 61966-2-1."""
