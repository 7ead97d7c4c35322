"""What is wrong with a file is said as it is, by us alone, and what is only lacking does not cost the picture."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import srcli
from PIL import Image, features
from tiff_files import LZW, Choice, tiff

from srcli.errors import ImageError
from srcli.images import deep, telling
from srcli.images.codec import decode, probe


@pytest.fixture(autouse=True)
def nothing_told() -> None:
    telling.forget()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def photo_of(width: int = 90, height: int = 70) -> np.ndarray:
    rng = np.random.default_rng(4)
    small = rng.integers(0, 255, (9, 11, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo_of()).save(buffer, format, **options)
    return buffer.getvalue()


# ---------------------------------------------------------------- rows that a PNG lacks


def png_of(rows: list[bytes], height: int, depth: int, color: int, interlaced: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, height, depth, color, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(range(9))) if color == 3 else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + palette + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "color", "row_bytes"), [(8, 2, 24), (8, 0, 8), (1, 0, 1), (8, 3, 8), (8, 6, 32), (16, 2, 48), (16, 0, 16)]
)
def test_a_png_that_lacks_rows_is_damaged(tmp_path: Path, depth: int, color: int, row_bytes: int) -> None:
    row = b"\1" * row_bytes
    for count in (1, 6, 11):
        (tmp_path / "a.png").write_bytes(png_of([row] * count, 12, depth, color))
        with pytest.raises(ImageError, match="it is damaged or incomplete"):
            decode(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png_of([row] * 11 + [b"\0" * row_bytes], 12, depth, color))
    assert decode(tmp_path / "a.png").levels[0].any()
    assert len(decode(tmp_path / "a.png").levels) == 12


@pytest.mark.parametrize("depth", [8, 16])
def test_rows_of_an_interlaced_png(tmp_path: Path, depth: int) -> None:
    widths = [1, 1, 2, 2, 4, 4, 8]  # of the passes of 8 x 8 pixels
    passes = [
        b"\7" * (width * 3 * depth // 8) for width, rows in zip(widths, [1, 1, 1, 2, 2, 4, 4], strict=True) for _ in range(rows)
    ]
    (tmp_path / "a.png").write_bytes(png_of(passes, 8, depth, 2, 1))
    assert np.unique(decode(tmp_path / "a.png").levels).tolist() == [7 if depth == 8 else 0x0707]
    (tmp_path / "a.png").write_bytes(png_of(passes[:-4], 8, depth, 2, 1))
    with pytest.raises(ImageError, match="it is damaged or incomplete"):
        decode(tmp_path / "a.png")


# ---------------------------------------------------------------- JPEG


OF_ODD_EXIF = {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\2\0\xff\0\0\0"}  # Pillow warns of it


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 3}, OF_ODD_EXIF])
def test_a_jpeg_without_its_end_marker_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, object]
) -> None:
    data = saved("JPEG", quality=90, **options)
    (tmp_path / "whole.jpg").write_bytes(data)
    for cut in (1, 2):
        telling.forget()
        caplog.clear()
        (tmp_path / "a.jpg").write_bytes(data[:-cut])
        with caplog.at_level(logging.WARNING, "srcli"):
            for _ in range(2):
                found = decode(tmp_path / "a.jpg")
        np.testing.assert_array_equal(found.levels, decode(tmp_path / "whole.jpg").levels)
        assert [record.message for record in caplog.records] == [
            f"`{tmp_path / 'a.jpg'}`: it has no end marker, but all of its pixels; it may have been cut off"
        ]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_pixels_is_damaged(tmp_path: Path, progressive: bool) -> None:
    data = saved("JPEG", quality=90, progressive=progressive)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    for length in [*range(3, len(data) - 12, 101), *scans]:
        (tmp_path / "a.jpg").write_bytes(data[:length])
        with pytest.raises(ImageError, match="it is damaged or incomplete"):
            decode(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", "12-bit JPEG is not read"),
        (b"\xff\xc0", b"\xff\xc3", "lossless JPEG is not read"),
        (b"\xff\xc0", b"\xff\xf7", "JPEG-LS is not read"),
    ],
)
@pytest.mark.parametrize("read", [probe, decode])
def test_kinds_of_jpeg_that_are_not_read(tmp_path: Path, old: bytes, new: bytes, reason: str, read: object) -> None:
    (tmp_path / "a.jpg").write_bytes(saved("JPEG").replace(old, new, 1))
    with pytest.raises(ImageError, match=reason):
        read(tmp_path / "a.jpg")  # type: ignore[operator]


@pytest.mark.parametrize("mark", [b"http://ns.adobe.com/hdr-gain-map/1.0/", b"urn:iso:std:iso:ts:21496:-1"])
def test_a_gain_map_is_told_of_the_first_photo_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, mark: bytes) -> None:
    data = saved("JPEG")
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(mark)) + mark + data[2:])
    with caplog.at_level(logging.WARNING, "srcli"):
        decode(tmp_path / "a.jpg")
        decode(tmp_path / "b.jpg")
    assert len(caplog.records) == 1
    assert "a.jpg`: its gain map, which makes HDR of it, is left out" in caplog.text


# ---------------------------------------------------------------- more than 8 bits


@pytest.mark.skipif(not (deep.reads("avif") and features.check("avif")), reason="needs an OpenCV and a Pillow with AVIF")
@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avif_of_more_than_8_bits_keeps_them(tmp_path: Path, bits: int, channels: int) -> None:
    levels = (np.arange(32 * 48 * channels).reshape(32, 48, channels) * 7 % (1 << bits)).astype(np.uint16)
    bgr = levels if channels == 1 else levels[..., [2, 1, 0, 3][:channels]]
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    cv2.imwrite(str(tmp_path / "a.avif"), np.ascontiguousarray(bgr), options)
    picture = decode(tmp_path / "a.avif")
    assert probe(tmp_path / "a.avif").bit_depth == picture.bit_depth == 16
    right = np.rint(levels * (65535 / ((1 << bits) - 1)))
    shown = picture.color_levels if channels > 1 else picture.color_levels[..., :1]
    assert np.abs(shown - right[..., : shown.shape[2]]).max() <= 1
    if channels == 4:
        np.testing.assert_array_equal(picture.levels[..., 3], right[..., 3])


@pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow with AVIF")
def test_bits_that_are_lost_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    if not deep.reads("avif"):
        pytest.skip("needs an OpenCV that writes AVIF")
    cv2.imwrite(str(tmp_path / "a.avif"), np.full((8, 8, 3), 700, np.uint16), [cv2.IMWRITE_AVIF_DEPTH, 10])
    monkeypatch.setattr(deep, "reads", lambda format: False)
    with caplog.at_level(logging.WARNING, "srcli"):
        assert decode(tmp_path / "a.avif").bit_depth == 8
    assert "of its 10 bits per channel 8 are read" in caplog.text


@pytest.mark.skipif(not features.check("jpg_2000"), reason="needs a Pillow with JPEG 2000")
def test_jpeg_2000_of_16_bits_keeps_them(tmp_path: Path) -> None:
    y, x = np.mgrid[0:32, 0:48]
    levels = np.stack([x * 1000 + y, y * 2000 + x, 65535 - x * 3], -1).astype(np.uint16)  # noise would not be stored without loss
    cv2.imwrite(str(tmp_path / "a.jp2"), np.ascontiguousarray(levels[..., ::-1]))
    np.testing.assert_array_equal(decode(tmp_path / "a.jp2").levels, levels)
    data = (tmp_path / "a.jp2").read_bytes()
    (tmp_path / "bare.j2k").write_bytes(data[data.index(b"\xff\x4f\xff\x51") :])
    np.testing.assert_array_equal(decode(tmp_path / "bare.j2k").levels, levels)


@pytest.mark.parametrize("top", [1023, 5000, 65535])
def test_ppm_of_more_than_8_bits_keeps_them(tmp_path: Path, top: int) -> None:
    levels = np.random.default_rng(0).integers(0, top + 1, (7, 9, 3), np.uint16)
    (tmp_path / "a.ppm").write_bytes(b"P6\n# a note\n9 7 # another\n%d\n" % top + levels.astype(">u2").tobytes())
    assert probe(tmp_path / "a.ppm").bit_depth == 16
    np.testing.assert_array_equal(decode(tmp_path / "a.ppm").levels, np.rint(levels * (65535 / top)))


@pytest.mark.parametrize("read", [probe, decode])
def test_numbers_of_32_bits_are_refused_by_the_header(tmp_path: Path, read: object) -> None:
    (tmp_path / "a.ppm").write_bytes(b"Pf\n2 2\n-1.0\n" + bytes(16))
    with pytest.raises(ImageError, match="its pixels are 32-bit numbers"):
        read(tmp_path / "a.ppm")  # type: ignore[operator]


def test_heif_of_10_bits_by_libheif() -> None:
    heif = pytest.importorskip("pillow_heif")
    levels = (np.arange(32 * 48 * 3).reshape(32, 48, 3) * 40).astype(np.uint16)
    buffer = io.BytesIO()
    heif.from_bytes("RGB;16", (48, 32), levels.tobytes()).save(buffer, quality=100, chroma="444")
    found = deep.read("heif", buffer.getvalue(), 1023, "RGB")
    assert np.abs(found.astype(int) - levels).mean() < 300


# ---------------------------------------------------------------- reasons, and nothing of other libraries


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"8BPS\0\1" + b"\0" * 40, "Photoshop's PSD"),
        (b"\x76\x2f\x31\x01" + b"\0" * 40, "OpenEXR"),
        (b"#?RADIANCE\n" + b"\0" * 40, "Radiance HDR"),
        (b"\0\0\1\0\1\0" + b"\0" * 40, r"an icon \(ICO\)"),
        (b"%PDF-1.7\n" + b"\0" * 40, "PDF"),
        (b"qoif" + b"\0" * 40, "QOI"),
        (b"II\xbc\1" + b"\0" * 40, "JPEG XR"),
        (b"FUJIFILMCCD-RAW" + b"\0" * 40, "camera RAW"),
        (b"\0\0\0\x18ftypisom\0\0\0\1isommp41" + b"\0" * 40, "video"),
    ],
)
@pytest.mark.parametrize("read", [probe, decode])
def test_a_kind_that_is_not_read_is_named(tmp_path: Path, data: bytes, kind: str, read: object) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match=f"cannot be read: {kind} is not read"):
        read(tmp_path / "a.png")  # type: ignore[operator]


def broken_files() -> dict[str, bytes]:
    """Each of these made a library print lines of its own."""
    samples = np.random.default_rng(1).integers(0, 256, (19, 21, 3), np.uint8)
    lzw = bytearray(tiff(samples, Choice(compression=LZW)))
    lzw[8:400] = b"\xff" * 392
    in_tiff = bytearray(saved("TIFF", compression="jpeg"))
    at = in_tiff.index(b"\xff\xda") + 20
    in_tiff[at : at + 100] = b"\xff\xd9" * 50
    fax = io.BytesIO()
    Image.fromarray(samples[..., 0] > 128).save(fax, "TIFF", compression="group4")
    deep_png = b"".join([b"\x09" + b"\1" * 48] * 8)  # no such filter
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    twelve = saved("JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", 1)
    sixteen = cv2.imencode(".jp2", np.full((32, 32, 3), 40_000, np.uint16))[1].tobytes()
    files = {
        "lzw.tif": bytes(lzw),
        "jpeg.tif": bytes(in_tiff),
        "fax.tif": fax.getvalue().replace(fax.getvalue()[8:40], b"\0" * 32),
        "filter.png": b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(deep_png)) + chunk(b"IEND", b""),
        "stream.png": b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"\x78\x9cno deflate") + chunk(b"IEND", b""),
        "12.jpg": twelve,
        "cut.jp2": sixteen[:-60],
        "odd.tif": tiff(samples, Choice(), {65000: (3, [1]), 0: (3, [1]), 42112: (4, [1, 2, 3])}),
    }
    if deep.reads("avif"):
        ten = cv2.imencode(".avif", np.full((32, 32, 3), 700, np.uint16), [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
        files["cut.avif"] = ten[:-20]
    return files


def test_libraries_print_nothing_about_broken_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read = []
    for name, data in broken_files().items():
        (tmp_path / name).write_bytes(data)
        try:
            decode(tmp_path / name)
            read.append(name)
        except ImageError:
            pass
    assert capfd.readouterr() == ("", "")
    assert set(read) <= {"odd.tif", "jpeg.tif", "fax.tif"}


def test_libraries_print_nothing_of_files_that_are_looked_at_before_any_is_read(tmp_path: Path) -> None:
    """As for results of earlier runs, while the work is planned."""
    odd = [broken for name, broken in broken_files().items() if name.endswith(".tif")]
    for number, data in enumerate([*odd, b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\1\0" + b"\xff" * 12]):
        (tmp_path / f"{number}.tif").write_bytes(data)
    code = "import sys; from pathlib import Path; from srcli.images.metadata import is_own_result as own; "
    code += "print([path.name for path in Path(sys.argv[1]).iterdir() if own(path)])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("sides", [(0, 0), (0, 5)])
def test_a_dry_run_finds_what_the_run_would(tmp_path: Path, sides: tuple[int, int]) -> None:
    samples = np.zeros((4, 5, 3), np.uint8)
    for name, more in {"none.tif": {256: (4, [sides[0]]), 257: (4, [sides[1]])}, "whole.tif": {}}.items():
        (tmp_path / name).write_bytes(tiff(samples, Choice(), more))
    done = srcli("upscale", tmp_path, "-o", tmp_path / "out", "--scale", 2, "--dry-run")
    said = " ".join(done.stderr.split())
    assert done.returncode == 1
    assert "it has no pixels: a side is 0" in said
    assert "whole.tif" in said


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_png_without_pixels_is_found_before_the_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    data = png_of([], 4, 8, 2)
    at = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + data[data.index(b"IEND") - 4 :])
    done = srcli("upscale", tmp_path, "-o", tmp_path / "out", "--scale", 2, *options)
    assert done.returncode == 1
    assert "it is damaged or incomplete (there is no IDAT, which holds the pixels)" in " ".join(done.stderr.split())


@pytest.mark.parametrize("count", [1, 2])
def test_others_are_spoken_of_only_where_there_are_others(tmp_path: Path, count: int) -> None:
    for name in ("a.png", "b.png")[:count]:
        Image.new("RGBA", (8, 8), (200, 100, 0, 100)).save(tmp_path / name)
    dials = ("--lambda-pixel", 0, "--lambda-semantic", 0)
    done = srcli("upscale", tmp_path, "-o", tmp_path / "out", "--format", "jpeg", "--device", "cpu", *dials)
    said = " ".join(done.stderr.split())
    assert "laid on white" in said
    assert ("other pictures of which this is true are not named" in said) == (count > 1)
