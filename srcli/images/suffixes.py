"""What the end of a file's name says: which formats are written, which are read, and which pictures cannot be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from srcli.errors import UsageError

OUTPUT_FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif", "jxl": ".jxl"}
"""Name of each format that can be written -> the suffix that a converted file gets."""

LOSSLESS_FORMATS = ("png", "tiff")
"""Those that no quality is asked for."""

FORMAT_OF_SUFFIX = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".avif": "avif",
    ".jxl": "jxl",
}
"""Suffix (lower case) -> name of the format."""

RAW_SUFFIXES = frozenset({".3fr", ".arw"}) | {
    *(".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef"),
    *(".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw"),
}
"""Of cameras' own formats (lower case)."""

HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})

_OTHERS = frozenset({".apng", ".avifs", ".bmp", ".dib", ".gif", ".j2k"}) | {
    *(".jp2", ".jpx", ".mpo", ".pbm", ".pgm", ".pnm", ".ppm", ".tga"),
}
INPUT_SUFFIXES = frozenset(FORMAT_OF_SUFFIX) | HEIF_SUFFIXES | RAW_SUFFIXES | _OTHERS
"""What is taken for an image inside a folder (lower case)."""

UNREAD_SUFFIXES = frozenset({".exr", ".hdr", ".kra", ".psb", ".psd", ".raw", ".x3f", ".xcf"})
"""Pictures of kinds that are not read, to be told of (lower case)."""


def counts_by_suffix(files: Iterable[Path]) -> str:
    """`12 .heic, 3 .dng`: how many there are of each kind, the most first."""
    return ", ".join(f"{count} {suffix}" for suffix, count in suffix_counts(files).items())


def suffix_counts(files: Iterable[Path]) -> dict[str, int]:
    """Suffix (lower case) -> how many files have it, the most first."""
    counts = Counter(path.suffix.lower() for path in files)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def format_of(path: Path) -> str:
    """The name of the output format that the suffix of `path` stands for.

    Raises:
        UsageError: it is not one that can be written.
    """
    try:
        return FORMAT_OF_SUFFIX[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"`{path.suffix or path.name}` is not the suffix of an image format that can be written",
            f"use one of {', '.join(sorted(FORMAT_OF_SUFFIX))}",
        ) from None
