from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from srcli.engine.blend import Blend, axis_weights, gaussian_window
from srcli.engine.tiles import Grid, axis_starts, make_grid


def test_starts_are_those_of_the_reference_grid() -> None:
    assert axis_starts(130, 64, 16) == (0, 48, 66)
    assert axis_starts(100, 64, 16) == (0, 36)
    assert axis_starts(130, 96, 32) == (0, 34)


def test_a_plane_of_no_more_cells_than_a_tile_stays_whole() -> None:
    assert len(make_grid(64, 144, 96, 32).tiles) == 1
    assert len(make_grid(64, 145, 96, 32).tiles) > 1


@pytest.mark.parametrize("height", [1, 2, 7, 64, 95, 96, 97, 300])
@pytest.mark.parametrize("width", [1, 3, 64, 400, 9999])
@pytest.mark.parametrize(("tile", "overlap"), [(96, 32), (16, 5), (8, 0), (3, 2)])
@pytest.mark.parametrize("even", [False, True])
def test_tiles_cover_every_cell_and_stay_inside(height: int, width: int, tile: int, overlap: int, even: bool) -> None:
    grid = make_grid(height, width, tile, overlap, even=even)
    for starts, size, length in ((grid.tops, grid.height, height), (grid.lefts, grid.width, width)):
        covered = set()
        for start in starts:
            assert 0 <= start <= length - size
            covered.update(range(start, start + size))
        assert covered == set(range(length))
        assert len(set(starts)) == len(starts)


def test_even_tiles_are_as_many_as_fixed_ones_and_no_larger_than_they_must() -> None:
    assert make_grid(240, 320, 128, 16, even=True) == Grid((0, 112), (0, 102, 202), 128, 118)
    for height, width in [(97, 97), (100, 400), (300, 1000), (130, 3000)]:
        fixed, even = (make_grid(height, width, 96, 32, even=wish) for wish in (False, True))
        assert len(even.tiles) == len(fixed.tiles)
        for starts, size, before in ((even.tops, even.height, fixed.height), (even.lefts, even.width, fixed.width)):
            assert size <= before
            overlaps = [first + size - second for first, second in pairwise(starts)]
            assert all(32 <= overlap <= 32 + len(starts) for overlap in overlaps)


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        axis_starts(100, 32, 32)


def test_window_is_the_reference_gaussian() -> None:
    window = gaussian_window(5)
    expected = [torch.exp(torch.tensor(-((i - 2.0) ** 2) / (2 * 0.01 * 25), dtype=torch.float64)) for i in range(5)]
    assert torch.allclose(window, torch.stack(expected))


def test_weights_sum_to_one_everywhere_even_where_windows_vanish() -> None:
    starts = axis_starts(1000, 300, 10)
    total = torch.zeros(1000, dtype=torch.float64)
    for start, weights in zip(starts, axis_weights(starts, 300, 1000), strict=True):
        assert torch.isfinite(weights).all()
        total[start : start + 300] += weights
    assert torch.allclose(total, torch.ones(1000, dtype=torch.float64), atol=1e-12)


def test_blending_equals_the_weighted_mean_of_the_formula() -> None:
    grid = make_grid(20, 33, 12, 5)
    blend = Blend(grid, 2, 20, 33)
    numerator = torch.zeros(2, 20, 33, dtype=torch.float64)
    denominator = torch.zeros(20, 33, dtype=torch.float64)
    window = torch.outer(gaussian_window(12), gaussian_window(12))
    generator = torch.Generator().manual_seed(0)
    for tile in grid.tiles:
        values = torch.rand(2, 12, 12, generator=generator)
        blend.add(tile, values)
        rows = slice(tile.top, tile.top + 12)
        columns = slice(tile.left, tile.left + 12)
        numerator[:, rows, columns] += values * window
        denominator[rows, columns] += window
    assert torch.allclose(blend.plane.double(), numerator / denominator, atol=1e-6)
