"""What networks see beyond the edges of a picture: the picture, mirrored; nothing of it is left in the result."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import srcli
from mock_restorer import MockRestorer
from PIL import Image
from torch import Tensor
from torch.nn import functional

from srcli.engine.margin import mirrored
from srcli.engine.parts import cut
from srcli.engine.restore import Engine, Limits
from srcli.engine.tiles import Tile


@pytest.mark.parametrize(("height", "width", "margin"), [(5, 7, 2), (5, 7, 0), (1, 3, 4), (2, 1, 7)])
@pytest.mark.parametrize("patch", [1, 4])
def test_a_tile_beyond_the_edges_holds_the_mirrored_pixels(height: int, width: int, margin: int, patch: int) -> None:
    picture = np.random.default_rng(0).random((3, height * patch, width * patch), dtype=np.float32)
    latent = functional.pixel_unshuffle(torch.from_numpy(picture), patch)
    around = margin * patch
    crop = partial(cut, latent, cell=1)
    wanted = np.pad(picture, ((0, 0), (around, around), (around, around)), mode="symmetric")
    for tile in (Tile(0, 0, height + 2 * margin, width + 2 * margin), Tile(margin, margin, height, width), Tile(0, 1, 1, 2)):
        found = functional.pixel_shuffle(mirrored(crop, (height, width), tile, margin, patch), patch).numpy()
        top, left = tile.top * patch, tile.left * patch
        assert (found == wanted[:, top : top + tile.height * patch, left : left + tile.width * patch]).all()


class PaddingRestorer(MockRestorer):
    """Its answer is the mean of 3 x 3 cells, beyond its tiles 0."""

    margin = 4

    def predict(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        super().predict(latent)
        return functional.avg_pool2d(latent, 3, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (60, 61), (150, 90)])
def test_what_a_network_does_at_the_edges_is_cut_off_with_the_margin(size: tuple[int, int]) -> None:
    flat = torch.full((3, *size), 0.5)
    whole = Limits(100, 6, 3, part_bytes=None)
    (result,) = Engine(PaddingRestorer(), whole).restore([flat])
    assert result.shape == flat.shape
    assert result.abs().max() < 1e-6  # flat less its own mean
    spoilt = PaddingRestorer()
    spoilt.margin = 0
    assert Engine(spoilt, whole).restore([flat])[0].abs().max() > 0.1


def test_tiles_with_a_margin_agree_with_the_whole_and_are_counted() -> None:
    picture = torch.rand(3, 150, 90, generator=torch.Generator().manual_seed(0)) - 0.5
    whole, tiled = (Engine(PaddingRestorer(), Limits(side, 12, 3, None, tiling="context")) for side in (100, 24))
    (wanted,), (found,) = whole.restore([picture]), tiled.restore([picture])
    assert torch.allclose(found, wanted, atol=1e-6)
    computed = sum(n * h * w * 16 for n, _, h, w in tiled.restorer.batches)  # type: ignore[attr-defined]
    assert tiled.worked_pixels(150, 90) == computed
    assert whole.worked_pixels(150, 90) == (38 + 2) * 4 * (23 + 2) * 4


def test_flat_pictures_stay_flat_up_to_their_corners(tmp_path: Path) -> None:
    colors = {"gray": (128, 128, 128), "white": (255, 255, 255), "orange": (200, 60, 30)}
    for name, color in colors.items():
        Image.new("RGB", (29, 22), color).save(tmp_path / f"{name}.png")
    done = srcli("upscale", tmp_path, "-o", tmp_path / "out", "--device", "cpu", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    for name, color in colors.items():
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert np.abs(np.asarray(image).astype(int) - color).max() <= 3  # without the margin, 14 in the corners
