"""TIFF: every combination of its choices is read rightly, or refused with the reason."""

from __future__ import annotations

import io
import itertools
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import tifffile
from PIL import Image, ImageCms
from tiff_files import CMYK, DEFLATE, LZW, MIN_IS_BLACK, MIN_IS_WHITE, NONE, PACKBITS, PALETTE, RGB, Choice, tiff, tiff_file

from srcli.errors import ImageError
from srcli.images.codec import decode, probe

UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2
HEIGHT, WIDTH = 19, 21
KINDS = [
    (MIN_IS_BLACK, ()), (MIN_IS_WHITE, ()), (MIN_IS_BLACK, (UNASSOCIATED,)), (MIN_IS_BLACK, (ASSOCIATED,)),
    (MIN_IS_BLACK, (UNSPECIFIED,)), (MIN_IS_WHITE, (UNASSOCIATED,)), (RGB, ()), (RGB, (UNSPECIFIED,)), (RGB, (UNASSOCIATED,)),
    (RGB, (ASSOCIATED,)), (RGB, (UNSPECIFIED, UNASSOCIATED)), (RGB, (UNASSOCIATED, UNSPECIFIED)), (PALETTE, ()),
    (PALETTE, (UNASSOCIATED,)), (CMYK, ()),
]  # fmt: skip
CASES = [
    (photometric, extra, bits)
    for (photometric, extra), bits in itertools.product(KINDS, (1, 2, 4, 5, 8, 10, 12, 14, 16))
    if photometric != PALETTE or bits <= 10
]


def samples_of(choice: Choice) -> np.ndarray:
    rng = np.random.default_rng(choice.bits * 31 + choice.samples)
    kind = np.uint16 if choice.bits > 8 else np.uint8
    samples = rng.integers(0, 1 << choice.bits, (HEIGHT, WIDTH, choice.samples), kind)
    if ASSOCIATED in choice.extra:
        alpha = samples[..., -1:]
        samples[..., :-1] = np.minimum(samples[..., :-1], alpha)
    return samples


def palette_of(bits: int, *, narrow: bool = False) -> list[int]:
    levels = np.random.default_rng(bits).integers(0, 256, 3 << bits)
    return (levels if narrow else levels * 257).tolist()


def scaled(samples: np.ndarray, bits: int) -> np.ndarray:
    top, kind = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    return np.rint(samples * (top / ((1 << bits) - 1))).astype(kind)


def wanted(samples: np.ndarray, choice: Choice) -> np.ndarray:
    """What TIFF 6.0 says that the samples look like."""
    colors = choice.samples - len(choice.extra)
    color, extra = samples[..., :colors], list(choice.extra)
    shown = scaled(color, choice.bits)
    if choice.photometric == MIN_IS_WHITE:
        shown = np.iinfo(shown.dtype).max - shown
    if choice.photometric == PALETTE:
        shown = np.array(palette_of(choice.bits)).reshape(3, -1).T[color[..., 0]].astype(np.uint16) // 257
    if choice.photometric == CMYK:
        parts = np.rint(scaled(color, choice.bits) / (257 if choice.bits > 8 else 1)).astype(np.uint8)
        return np.asarray(Image.fromarray(parts, "CMYK").convert("RGB"))
    opacity = next((i for i, each in enumerate(extra) if each in (ASSOCIATED, UNASSOCIATED)), None)
    if opacity is None:
        return shown
    alpha = scaled(samples[..., colors + opacity : colors + opacity + 1], choice.bits)
    if extra[opacity] == ASSOCIATED:
        top = np.iinfo(shown.dtype).max
        shown = np.rint(np.minimum(shown / np.maximum(alpha, 1) * top, top))
    if choice.photometric == PALETTE and choice.bits > 8:
        alpha = alpha >> 8
    return np.concatenate([shown, alpha], axis=2)


def choices(photometric: int, extra: tuple[int, ...], bits: int) -> Iterator[Choice]:
    """All that are left to choose."""
    for planar, compression, order, layout in itertools.product(
        (1, 2), (NONE, LZW, DEFLATE, PACKBITS), "<>", ("strips", "strip", "tiles")
    ):
        for predictor in (1, 2) if bits in (8, 16) and compression in (LZW, DEFLATE) else (1,):
            yield Choice(photometric, bits, extra, planar, compression, order, layout, predictor)


def written(folder: Path, samples: np.ndarray, choice: Choice) -> Path:
    more = {320: (3, palette_of(choice.bits))} if choice.photometric == PALETTE else {}
    (folder / "a.tif").write_bytes(tiff(samples, choice, more))
    return folder / "a.tif"


def check(folder: Path, choice: Choice) -> None:
    samples = samples_of(choice)
    path = written(folder, samples, choice)
    if choice.photometric == CMYK and choice.bits not in (8, 16):
        for read in (probe, decode):
            with pytest.raises(ImageError, match=f"{choice.bits}-bit (planar )?SEPARATED TIFF with .* is not read"):
                read(path)
        return
    found, right = decode(path), wanted(samples, choice)
    assert found.levels.shape == right.shape, choice
    apart = 1 if ASSOCIATED in choice.extra else 0
    assert np.abs(found.levels.astype(int) - right.astype(int)).max() <= apart, choice
    header = probe(path)
    assert (header.width, header.height, header.bit_depth) == (WIDTH, HEIGHT, found.bit_depth), choice


@pytest.mark.parametrize(("photometric", "extra", "bits"), CASES)
def test_what_a_tiff_may_choose_is_read_rightly(tmp_path: Path, photometric: int, extra: tuple[int, ...], bits: int) -> None:
    for choice in list(choices(photometric, extra, bits))[bits % 13 :: 13]:  # which in all cases meets all values
        check(tmp_path, choice)


@pytest.mark.slow
@pytest.mark.parametrize(("photometric", "extra", "bits"), CASES)
def test_all_that_a_tiff_may_choose_is_read_rightly(tmp_path: Path, photometric: int, extra: tuple[int, ...], bits: int) -> None:
    for choice in choices(photometric, extra, bits):
        check(tmp_path, choice)
        check(tmp_path, replace(choice, fill=2))


@pytest.mark.slow
@pytest.mark.parametrize(("photometric", "extra", "bits"), [case for case in CASES if case[2] in (8, 16)])
def test_other_readers_find_the_same_in_these_files(tmp_path: Path, photometric: int, extra: tuple[int, ...], bits: int) -> None:
    pytest.importorskip("imagecodecs")
    for choice in choices(photometric, extra, bits):
        samples = samples_of(choice)
        with tifffile.TiffFile(written(tmp_path, samples, choice)) as tif:
            stored = tif.pages[0].asarray()
        if choice.planar == 2 and choice.samples > 1:
            stored = np.moveaxis(stored, 0, -1)
        np.testing.assert_array_equal(stored.reshape(samples.shape), samples, err_msg=str(choice))


@pytest.mark.skipif(shutil.which("convert") is None, reason="needs ImageMagick")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize(("photometric", "extra"), [(RGB, ()), (RGB, (UNASSOCIATED,)), (MIN_IS_BLACK, ()), (MIN_IS_WHITE, ())])
def test_imagemagick_sees_what_is_read(tmp_path: Path, photometric: int, extra: tuple[int, ...], bits: int, planar: int) -> None:
    choice = Choice(photometric, bits, extra, planar, LZW, predictor=2)
    path = written(tmp_path, samples_of(choice), choice)
    shown = subprocess.run(["convert", path, "-depth", str(bits), "-endian", "LSB", "rgba:-"], capture_output=True, check=True)
    other = np.frombuffer(shown.stdout, f"<u{bits // 8}").reshape(HEIGHT, WIDTH, 4)
    found = decode(path)
    np.testing.assert_array_equal(np.repeat(found.color_levels, 3 if found.gray else 1, axis=2), other[..., :3])
    if extra:
        np.testing.assert_array_equal(found.levels[..., 3], other[..., 3])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_palette_of_8_bit_values(tmp_path: Path, bits: int) -> None:
    choice = Choice(PALETTE, bits)
    samples = samples_of(choice)
    palette = palette_of(bits, narrow=True)
    (tmp_path / "a.tif").write_bytes(tiff(samples, choice, {320: (3, palette)}))
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").levels, np.array(palette).reshape(3, -1).T[samples[..., 0]])


@pytest.mark.parametrize(("compression", "first"), [(None, 1), ("jpeg", 1), ("jpeg", 4)])
def test_a_reduced_picture_or_a_mask_is_not_the_photo(tmp_path: Path, first: int, compression: str | None) -> None:
    small, large = (np.full((size, size, 3), size, np.uint8) for size in (16, 48))
    if compression is None:
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(small, photometric="rgb", subfiletype=first)
            writer.write(large, photometric="rgb")
    else:
        pages = [Image.fromarray(each) for each in (small, large)]
        buffer = io.BytesIO()
        pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], compression="jpeg", tiffinfo={254: first})
        data = bytearray(buffer.getvalue())
        for at in [at for at in range(len(data) - 12) if data[at : at + 8] == struct.pack("<HHI", 254, 4, 1)][1:]:
            data[at + 8] = 0
        (tmp_path / "a.tif").write_bytes(data)
    assert probe(tmp_path / "a.tif").width == 48
    assert np.unique(decode(tmp_path / "a.tif").levels).tolist() == [48]


def test_a_tiff_of_reduced_pictures_alone_shows_the_first(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((4, 5, 3), 9, np.uint8), photometric="rgb", subfiletype=1)
    assert decode(tmp_path / "a.tif").levels.shape == (4, 5, 3)


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(("photometric", "channels"), [("minisblack", 1), ("minisblack", 2), ("rgb", 3), ("rgb", 4)])
def test_jpeg_inside_tiff(tmp_path: Path, photometric: str, channels: int, tile: tuple[int, int] | None, planar: int) -> None:
    pytest.importorskip("imagecodecs")
    y, x = np.mgrid[0:32, 0:48]
    smooth = np.stack([x * 5, y * 7, x + y, 255 - x], -1).astype(np.uint8)[..., :channels]
    stored = np.moveaxis(smooth, -1, 0) if planar == 2 else smooth
    if (photometric, channels, planar) == ("rgb", 4, 1):
        pytest.skip("imagecodecs does not write it")
    tifffile.imwrite(
        tmp_path / "a.tif", stored.squeeze(), photometric=photometric, tile=tile, compression="jpeg",
        compressionargs={"level": 100}, extrasamples=["unassalpha"] * (1 - channels % 2), metadata=None,
        planarconfig={1: "contig", 2: "separate"}[planar] if channels > 1 else None,
    )  # fmt: skip
    if (channels, planar) == (2, 2):
        with pytest.raises(ImageError, match="8-bit planar MINISBLACK TIFF with JPEG compression is not read"):
            probe(tmp_path / "a.tif")
        return
    assert np.abs(decode(tmp_path / "a.tif").levels.astype(int) - smooth).max() <= 12


def test_old_jpeg_inside_tiff(tmp_path: Path) -> None:
    y, x = np.mgrid[0:32, 0:48]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 5, y * 7, x + y], -1).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    stream = buffer.getvalue()
    scan = stream.index(b"\xff\xda")
    pixels = scan + 2 + int.from_bytes(stream[scan + 2 : scan + 4], "big")
    more = {
        258: [8, 8, 8], 259: [6], 262: [6], 273: [8 + pixels], 277: [3], 278: [32], 279: [len(stream) - pixels], 512: [1],
        513: [8], 514: [len(stream)], 530: [2, 2],
    }  # fmt: skip
    tags = {256: (4, [48]), 257: (4, [32])} | {tag: (3, values) for tag, values in more.items()}
    (tmp_path / "a.tif").write_bytes(tiff_file("<", stream, tags))
    with Image.open(buffer) as other:
        right = np.asarray(other).astype(int)
    assert np.abs(decode(tmp_path / "a.tif").levels - right).mean() < 2


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_compression_of_black_and_white(tmp_path: Path, compression: str) -> None:
    black = np.random.default_rng(3).random((20, 40)) < 0.5
    Image.fromarray(black).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(decode(tmp_path / "a.tif").levels[..., 0], black * 255)


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "raw"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "P"])
def test_what_pillow_writes_is_read_as_pillow_reads_it(tmp_path: Path, mode: str, compression: str) -> None:
    rng = np.random.default_rng(5)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (5, 6, 3), np.uint8)).resize((48, 32), Image.Resampling.BICUBIC))
    image = Image.fromarray(smooth)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB") or image
    else:
        image = image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(smooth[..., 0]))
    try:
        image.save(tmp_path / "a.tif", compression=compression)
    except (OSError, RuntimeError) as fault:
        pytest.skip(f"Pillow does not write this: {fault}")
    if compression == "jpeg" and mode in ("LAB", "P"):
        for read in (probe, decode):
            with pytest.raises(ImageError, match="TIFF with JPEG compression is not read"):
                read(tmp_path / "a.tif")
        return
    if (mode, compression) == ("YCbCr", "raw") and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow 12 does not read the YCbCr that it writes uncompressed")
    found = decode(tmp_path / "a.tif").levels
    with Image.open(tmp_path / "a.tif") as other:
        if mode == "LAB":
            other = ImageCms.profileToProfile(other, lab, srgb, outputMode="RGB")
        right = np.asarray(other.convert({"CMYK": "RGB", "YCbCr": "RGB", "P": "RGB", "LAB": "RGB"}.get(mode, mode)))
    np.testing.assert_array_equal(found, right.reshape(found.shape))


REFUSED = [
    (Choice(MIN_IS_BLACK, 16, (UNSPECIFIED, UNSPECIFIED)), {}, "TIFF with 3 bands that are called gray is not read"),
    (Choice(MIN_IS_BLACK, 8, (UNSPECIFIED,) * 3, planar=2), {}, "TIFF with 4 bands that are called gray is not read"),
    (Choice(RGB), {258: (3, [5, 6, 5])}, r"TIFF with samples of different sizes \(5, 6, 5 bits\) is not read"),
    (Choice(RGB), {339: (3, [2, 2, 2])}, "its pixels are 8-bit signed numbers"),
    (Choice(RGB), {259: (3, [34712])}, "8-bit RGB TIFF with JPEG_2000_LOSSY|JPEG2000|34712 compression is not read"),
    (Choice(RGB), {259: (3, [4711])}, "8-bit RGB TIFF with 4711 compression is not read"),
    (Choice(RGB, planar=2), {259: (3, [7]), 262: (3, [6])}, "8-bit planar YCBCR TIFF with JPEG compression is not read"),
    (Choice(CMYK, extra=(UNASSOCIATED,)), {259: (3, [7])}, "8-bit SEPARATED TIFF with JPEG compression is not read"),
    (Choice(MIN_IS_BLACK, 12), {259: (3, [7])}, "12-bit MINISBLACK TIFF with JPEG compression is not read"),
    (Choice(MIN_IS_BLACK), {262: (3, [32803])}, "8-bit CFA TIFF with NONE compression is not read"),
    (Choice(RGB, 16), {262: (3, [8])}, "16-bit CIELAB TIFF with NONE compression is not read"),
    (Choice(RGB, 16, compression=DEFLATE), {317: (3, [3])}, "TIFF with .*DEFLATE compression and predictor 3 is not read"),
    (Choice(CMYK), {332: (3, [2])}, "8-bit SEPARATED TIFF with NONE compression is not read"),
    (Choice(RGB), {256: (4, [0])}, "it has no pixels: a side is 0"),
    (Choice(RGB), {256: (4, [0]), 257: (4, [0])}, "it has no pixels: a side is 0"),
]


@pytest.mark.parametrize(("choice", "more", "reason"), REFUSED)
@pytest.mark.parametrize("read", [probe, decode])
def test_what_is_not_read_says_so_before_it_is_decoded(
    tmp_path: Path, choice: Choice, more: dict[int, tuple[int, list[int]]], reason: str, read: object
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(samples_of(choice), choice, more))
    with pytest.raises(ImageError, match=reason) as caught:
        read(tmp_path / "a.tif")  # type: ignore[operator]
    assert "damaged" not in caught.value.message


@pytest.mark.parametrize("compression", [NONE, LZW, DEFLATE, PACKBITS])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_tiff_that_lacks_bytes_is_damaged(tmp_path: Path, compression: int, layout: str, bits: int) -> None:
    choice = Choice(RGB, bits, compression=compression, layout=layout)
    whole = tiff(samples_of(choice), choice)
    (size_tag,) = struct.unpack_from("<I", whole, 4)
    tag = 325 if layout == "tiles" else 279
    entry = next(at for at in range(size_tag + 2, len(whole), 12) if struct.unpack_from("<H", whole, at)[0] == tag)
    (count, table) = struct.unpack_from("<II", whole, entry + 4)
    (length,) = struct.unpack_from("<I", whole, table + 4 * (count - 1))
    for size in (0, length // 2):
        broken = bytearray(whole)
        struct.pack_into("<I", broken, table + 4 * (count - 1), size)
        (tmp_path / "a.tif").write_bytes(broken)
        with pytest.raises(ImageError, match="damaged or incomplete"):
            decode(tmp_path / "a.tif")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "times"),
    [
        (Choice(RGB, 16, (ASSOCIATED,), compression=DEFLATE), 2.5),
        (Choice(RGB, 16, (), planar=2), 3.5),
        (Choice(MIN_IS_BLACK, 1, layout="tiles"), 2.5),
        (Choice(RGB, 12), 2.5),
    ],
)
def test_memory_of_a_tiff_is_a_few_times_its_pixels(tmp_path: Path, choice: Choice, times: float) -> None:
    kind = np.uint16 if choice.bits > 8 else np.uint8
    samples = np.zeros((4000, 3008, choice.samples), kind)
    (tmp_path / "a.tif").write_bytes(tiff(samples, choice))
    tracemalloc.start()
    try:
        levels = decode(tmp_path / "a.tif").levels
        assert tracemalloc.get_traced_memory()[1] < times * levels.nbytes + (64 << 20)
    finally:
        tracemalloc.stop()
