"""Reading headers without pixels, and only the kinds of files that are meant to be read."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin, features

from srcli.errors import ImageError
from srcli.images.codec import Header, decode, probe
from srcli.images.suffixes import HEIF_SUFFIXES, INPUT_SUFFIXES, RAW_SUFFIXES

ORIENTATION, MAKE = 0x0112, 0x010F


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, color_type: int, rows: list[bytes], width: int, before: bytes = b"", after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, color_type, 0, 0, 0))
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IDAT", pixels[start : start + 5]) for start in range(0, len(pixels), 5)]
    return b"".join([b"\x89PNG\r\n\x1a\n", header, before, *parts, after, chunk(b"IEND", b"")])


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[MAKE], exif[ORIENTATION] = "Kamera", 6
    return exif.tobytes()


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
NOTES = {
    "eXIf": chunk(b"eXIf", exif_block()[6:]),
    "tEXt": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  99\n" + exif_block().hex().encode() + b"\n"),
    "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  99\n" + exif_block().hex().encode())),
    "iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an entry for each PNG that Pillow decodes."""
    seen: list[int] = []
    real = PngImagePlugin.PngImageFile.load

    def load(image: PngImagePlugin.PngImageFile) -> object:
        seen.append(image.width)
        return real(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    return seen


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", list(NOTES))
def test_a_png_s_header_is_had_without_its_pixels(tmp_path: Path, loads: list[int], kind: str, late: bool, depth: int) -> None:
    rows = [bytes(range(7, 7 + 3 * depth // 8 * 3))] * 2
    (tmp_path / "a.png").write_bytes(png(depth, 2, rows, 3, **{"after" if late else "before": NOTES[kind]}))
    assert probe(tmp_path / "a.png") == Header(2, 3, depth, "png")
    assert loads == []
    picture = decode(tmp_path / "a.png")
    assert (picture.width, picture.height, picture.orientation) == (2, 3, 6)
    assert (b"Kamera" in (picture.exif or b"")) == (kind != "iTXt")


@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_without_notes_is_not_decoded_for_its_header(tmp_path: Path, loads: list[int], depth: int) -> None:
    (tmp_path / "a.png").write_bytes(png(depth, 0, [b"abcdef"[: 3 * depth // 8]], 3))
    assert probe(tmp_path / "a.png") == Header(3, 1, depth, "png")
    assert loads == []


@pytest.mark.parametrize(
    "end",
    [
        NOTES["eXIf"][:-9],  # cut short
        struct.pack(">I4s", 0xFFFFFFFF, b"eXIf") + b"abc",  # claims four gigabytes
        chunk(b"eXIf", b"no such block"),
        chunk(b"zTXt", b"Raw profile type exif\0\0not deflated"),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  99\nno digits"),
    ],
)
def test_broken_notes_cost_neither_header_nor_much_memory(tmp_path: Path, end: bytes) -> None:
    whole = png(8, 0, [b"abc"], 3, after=end)
    (tmp_path / "a.png").write_bytes(whole[: whole.rindex(end) + len(end)])
    assert probe(tmp_path / "a.png") == Header(3, 1, 8, "png")


@pytest.mark.parametrize(
    ("depth", "row", "levels", "unused"),
    [
        (1, b"\x40", [0, 1], 0),
        (2, b"\x40", [1, 0], 0),
        (2, b"\x40", [1, 0], 0x100),
        (4, b"\x5f", [5, 15], 0),
        (4, b"\x5f", [5, 15], 0x100),
    ],
)
def test_gray_png_of_few_bits_with_a_transparent_level(
    tmp_path: Path, depth: int, row: bytes, levels: list[int], unused: int
) -> None:
    top = (1 << depth) - 1
    for level in levels:
        (tmp_path / "a.png").write_bytes(png(depth, 0, [row], 2, before=chunk(b"tRNS", struct.pack(">H", level | unused))))
        found = decode(tmp_path / "a.png").levels
        assert found[0].tolist() == [[255 * each // top, 0 if each == level else 255] for each in levels]


SUFFIX_OF = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "JPEG2000": (".j2k", ".jp2", ".jpx"),
    "MPO": (".mpo",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TGA": (".tga",),
}


def test_each_suffix_that_is_taken_in_a_folder_can_be_read(tmp_path: Path) -> None:
    known = {suffix for suffixes in SUFFIX_OF.values() for suffix in suffixes}
    assert known == INPUT_SUFFIXES - HEIF_SUFFIXES - RAW_SUFFIXES - {".jxl"}  # those are in test_extras
    for format, suffixes in SUFFIX_OF.items():
        if (format == "AVIF" and not features.check("avif")) or (format == "JPEG2000" and not features.check("jpg_2000")):
            continue
        for suffix in suffixes:
            mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
            path = tmp_path / f"a{suffix}"
            image = Image.new(mode, (12, 8))
            more = {"save_all": True, "append_images": [Image.new(mode, (12, 8), 1)]} if format == "MPO" else {}
            image.save(path, format, **more)
            assert (probe(path).width, probe(path).height) == (12, 8)
            assert decode(path).levels.max() <= 2


@pytest.mark.parametrize("name", ["e.jpg", "e.eps"])
def test_files_that_are_programs_are_not_opened(tmp_path: Path, name: str) -> None:
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / name).write_bytes(head)
    with pytest.raises(ImageError, match=r"PostScript is not read"):
        probe(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (np.float16, "16-bit floating-point numbers"),
        (np.float32, "32-bit floating-point numbers"),
        (np.float64, "64-bit floating-point numbers"),
        (np.uint32, "32-bit numbers"),
    ],
)
@pytest.mark.parametrize("colors", [1, 3])
@pytest.mark.parametrize("read", [probe, decode])
def test_tiff_of_numbers_that_are_no_levels_is_refused_with_the_reason(
    tmp_path: Path, read: object, kind: type, words: str, colors: int
) -> None:
    photometric = "rgb" if colors == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 3)[: 2 + colors // 3], kind), photometric=photometric)
    with pytest.raises(ImageError, match=f"its pixels are {words}") as caught:
        read(tmp_path / "a.tif")  # type: ignore[operator]
    assert "8 or 16 bits" in caught.value.hint
