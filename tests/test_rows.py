"""Pictures in bands: how high the bands are must not show."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from srcli.images import rows as rows_module
from srcli.images.levels import to_depth, to_floats, to_levels
from srcli.images.resize import filter_for, resample
from srcli.images.rows import Rows, collect, make_rows, on_white, resized, rows_of


def levels_of(height: int, width: int, channels: int = 3, dtype: type = np.uint16) -> np.ndarray:
    rng = np.random.default_rng(height + width)
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


def whole(rows: Rows) -> np.ndarray:
    return np.concatenate([rows.read(top, bottom) for top, bottom in rows.bands()])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(400, 240), (200, 120), (150, 90), (50, 30), (37, 23), (101, 7), (211, 199), (1, 1), (100, 61)])
@pytest.mark.parametrize("step", [8, 40])
def test_resizing_in_bands_is_resizing_the_whole(channels: int, size: tuple[int, int], step: int) -> None:
    values = to_floats(levels_of(100, 60, channels))
    source = replace(make_rows(100, 60, lambda top, bottom: values[top:bottom].copy()), step=step)
    banded = resized(source, size)
    assert size[0] < 30 or len(list(banded.bands())) > 1
    expected = resample(values, size, filter_for((100, 60), size))
    np.testing.assert_allclose(whole(banded), expected, atol=5e-6)
    if 400 % size[0] == 0:  # bands begin at rows of the source
        assert np.abs(whole(banded) - expected).max() < 2e-7


def test_resizing_to_the_same_size_changes_nothing() -> None:
    rows = rows_of(levels_of(9, 7))
    assert resized(rows, (9, 7)) is rows


@pytest.mark.parametrize("width", [1, 1000, 1 << 21])
def test_bands_are_whole_and_of_bounded_size(width: int) -> None:
    rows = make_rows(1001, width, lambda top, bottom: np.zeros(0, np.float32))
    bands = list(rows.bands())
    assert [top for top, _ in bands] == [0, *(bottom for _, bottom in bands[:-1])]
    assert bands[-1][1] == 1001
    assert all(top % 8 == 0 for top, _ in bands)
    assert max(bottom - top for top, bottom in bands) * width <= max(rows_module.BAND_PIXELS, 8 * width)


def test_a_shrunk_picture_reads_no_more_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BAND_PIXELS", 64 * 100)
    read = []

    def rows_read(top: int, bottom: int) -> np.ndarray:
        read.append(bottom - top)
        return np.zeros((bottom - top, 100, 1), np.float32)

    whole(resized(make_rows(1600, 100, rows_read), (400, 25)))
    assert sum(read) >= 1600
    assert max(read) <= 64 + 2 * (3 * 4 + 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_levels_come_back_through_bands(dtype: type, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "BAND_PIXELS", 8 * 20)
    levels = levels_of(45, 20, channels, dtype)
    colors = 1 if channels <= 2 else 3
    alpha = rows_of(levels[..., colors:]) if channels in (2, 4) else None
    depth = 8 * levels.itemsize
    np.testing.assert_array_equal(collect(rows_of(levels[..., :colors]), alpha, gray=colors == 1, depth=depth), levels)


def test_gray_is_the_luma() -> None:
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 1] = 255
    gray = collect(rows_of(rgb), None, gray=True, depth=8)
    assert gray.shape == (2, 2, 1)
    assert (gray == round(0.587 * 255)).all()


def test_on_white_shows_white_where_nothing_is() -> None:
    levels = levels_of(5, 6, 4, np.uint8)
    found = collect(on_white(rows_of(levels[..., :3]), rows_of(levels[..., 3:])), None, gray=False, depth=8)
    white = Image.new("RGBA", (6, 5), "white")
    white.alpha_composite(Image.fromarray(levels))
    assert np.abs(found.astype(int) - np.asarray(white)[..., :3]).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_levels_are_rounded_and_clipped(depth: int) -> None:
    top = 2**depth - 1
    values = np.array([-0.1, 0.4 / top, 0.6 / top, 1.4 / top, 1 - 0.4 / top, 1.1], dtype=np.float32)
    found = to_levels(values, depth)
    assert found.dtype == (np.uint8 if depth == 8 else np.uint16)
    np.testing.assert_array_equal(found, [0, 0, 1, 1, top, top])
    every = np.arange(top + 1, dtype=found.dtype)
    np.testing.assert_array_equal(to_levels(to_floats(every), depth), every)


def test_depths_are_converted_to_the_nearest_level() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_depth(deep, 8), np.rint(deep / 257))
    np.testing.assert_array_equal(to_depth(to_depth(deep, 8), 16), np.rint(deep / 257) * 257)
    assert to_depth(deep, 16) is deep


@pytest.mark.parametrize("threads", [1, 3])
def test_bands_are_worked_on_in_threads_and_answer_in_order(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "THREADS", threads)
    rows = replace(rows_of(levels_of(100, 5)), step=8)
    together = threading.Barrier(threads, timeout=30)

    def work(top: int, bottom: int) -> int:
        if top < 8 * threads:
            together.wait()
        return bottom

    assert list(rows.work(work)) == [bottom for _, bottom in rows.bands()]
    with pytest.raises(ZeroDivisionError):
        list(rows.work(lambda top, bottom: 1 // top))
