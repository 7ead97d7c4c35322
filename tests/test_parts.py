"""Steps of an autoencoder over whole pictures: geometry of tiles with halos, and tiles that agree on sums."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from srcli.engine.parts import Room, run_part
from srcli.engine.sums import side_by_side
from srcli.engine.tiles import borders, halo_grid, margins_of, spread_grid
from srcli.errors import ModelError
from srcli.networks.backbone import KLAutoencoder, load_autoencoder
from srcli.networks.vae import OLD_NAMES, Vae
from srcli.protocol.restoring import Part

CPU = torch.device("cpu")


def plain(run: object, batch: Tensor) -> Tensor:
    return run(batch)  # type: ignore[operator,no-any-return]


# --- geometry ---


@pytest.mark.parametrize(
    ("height", "width", "most", "halo"), [(100, 300, 10_000, 4), (128, 128, 4096, 4), (1152, 1728, 32768, 4), (7, 900, 800, 2)]
)
def test_tiles_with_halo_cover_the_plane_and_hold_the_context_of_what_they_own(
    height: int, width: int, most: int, halo: int
) -> None:
    grid = halo_grid(height, width, most, halo)
    assert grid.height * grid.width <= most
    for starts, tile, length in ((grid.tops, grid.height, height), (grid.lefts, grid.width, width)):
        owned = borders(starts, tile, length)
        assert owned[0][0] == 0
        assert owned[-1][1] == length
        assert all(end == first for (_, end), (first, _) in itertools.pairwise(owned))
        for start, (first, end) in zip(starts, owned, strict=True):
            assert first - start >= halo or start == 0
            assert start + tile - end >= halo or start + tile == length


def test_margins_count_every_cell_once_when_tiles_cover_the_plane() -> None:
    grid = halo_grid(50, 70, 24 * 24, 3)
    counted = torch.zeros(50, 70)
    for tile, (top, left, bottom, right) in zip(grid.tiles, margins_of(grid, 50, 70, 3), strict=True):
        counted[tile.top + top : tile.top + tile.height - bottom, tile.left + left : tile.left + tile.width - right] += 1
    assert bool((counted == 1).all())


@pytest.mark.parametrize(("height", "width", "most"), [(100, 200, 8), (64, 4000, 30), (300, 300, 1), (20, 20, 50)])
def test_spread_tiles_stay_inside_and_within_their_number(height: int, width: int, most: int) -> None:
    grid = spread_grid(height, width, 16, most)
    assert 1 <= len(grid.tiles) <= most
    assert all(0 <= tile.top <= height - tile.height and 0 <= tile.left <= width - tile.width for tile in grid.tiles)


# --- running ---


def blur_part(halo: int) -> Part:
    """A convolution that reaches two cells of two samples."""
    kernel = torch.ones(3, 1, 9, 9) / 81

    def run(x: Tensor, *, exact: bool = False) -> Tensor:
        return torch.nn.functional.conv2d(x, kernel, padding=4, groups=3)

    return Part(run, 3, 2, 2, halo=halo, fade=2, cell_bytes=1)


def test_a_halo_as_wide_as_the_reach_gives_the_whole_picture() -> None:
    picture = torch.randn(3, 120, 200, generator=torch.Generator().manual_seed(0))
    (whole,) = run_part(blur_part(3), [picture], Room(CPU, 1), plain)
    (tiled,) = run_part(blur_part(3), [picture], Room(CPU, 4, 900), plain)
    (narrow,) = run_part(blur_part(1), [picture], Room(CPU, 4, 900), plain)
    assert torch.allclose(whole, tiled, atol=1e-6)
    assert not torch.allclose(whole, narrow, atol=1e-3)


def test_pictures_of_one_size_share_a_call_as_far_as_there_is_room() -> None:
    sizes: list[int] = []

    def counting(run: object, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return plain(run, batch)

    pictures = [torch.zeros(3, 20, 20)] * 5 + [torch.zeros(3, 10, 20)]
    results = run_part(blur_part(3), pictures, Room(CPU, 4, 300), counting)
    assert [tuple(result.shape) for result in results] == [(3, 20, 20)] * 5 + [(3, 10, 20)]
    assert sizes == [3, 2, 1]


# --- the autoencoder ---


def make_vae(**options: Any) -> Any:
    """Of diffusers."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (16, 32, 48),
        "norm_num_groups": 8,
    }
    return AutoencoderKL(**config | options).eval().requires_grad_(False)


def ours_of(theirs: Any) -> KLAutoencoder:
    """Ours, with the same weights."""
    network = Vae(theirs.config)
    network.load_state_dict(theirs.state_dict())
    return KLAutoencoder(network.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def autoencoder() -> KLAutoencoder:
    return ours_of(make_vae())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers_per_block": 2, "latent_channels": 3},
        {"use_quant_conv": False, "use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"block_out_channels": (16,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)},
    ],
)
def test_the_steps_are_the_autoencoder_of_diffusers(options: dict[str, Any]) -> None:
    theirs = make_vae(**options)
    ours = ours_of(theirs)
    scale = theirs.config.scaling_factor
    picture = torch.rand(2, 3, 40, 64) * 2 - 1
    latent = ours.encode(picture)
    assert latent.shape == (2, ours.channels, 40 // ours.factor, 64 // ours.factor)
    same = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5)  # theirs multiplies transposed tokens: it rounds otherwise
    same(latent, theirs.encode(picture).latent_dist.mode() * scale)
    one, other = latent.clone().requires_grad_(), latent.clone().requires_grad_()
    expected = theirs.decode(other / scale).sample
    decoded = ours.decode(one)
    same(decoded, expected)
    for result in (decoded, expected):
        result.square().mean().backward()
    same(one.grad, other.grad)


@pytest.mark.parametrize(
    ("key", "value"), [("act_fn", "relu"), ("shift_factor", 0.1), ("up_block_types", ["AttnUpDecoderBlock2D"])]
)
def test_an_autoencoder_of_another_kind_is_refused(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=value[0] if isinstance(value, list) else key):
        Vae({"block_out_channels": [16], "norm_num_groups": 8, key: value})


def test_an_autoencoder_of_the_first_years_has_other_names(tmp_path: Path) -> None:
    theirs = make_vae()
    old = {}
    for key, value in theirs.state_dict().items():
        for before, now in OLD_NAMES.items():
            key = key.replace(now, before)
        old[key] = value
    (tmp_path / "vae").mkdir()
    save_file(old, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **theirs.config}, default=str))
    latent = load_autoencoder(tmp_path).encode(torch.ones(1, 3, 16, 16))
    assert torch.equal(latent, ours_of(theirs).encode(torch.ones(1, 3, 16, 16)))
    assert "encoder.mid_block.attentions.0.query.weight" in old


@torch.no_grad()
def test_sums_of_tiles_are_the_sums_of_the_picture(autoencoder: KLAutoencoder) -> None:
    """At the first link, before any tile could differ, they are equal but for rounding; at the last one nearly."""
    picture = torch.rand(3, 160, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wide = autoencoder.parts().encoder[0]
    assert wide.chain is not None
    whole = side_by_side(wide.chain, [lambda: picture], 40, [(0, 0, 0, 0)], CPU).sums
    grid = halo_grid(40, 56, 24 * 24, 4)
    crops = [
        lambda t=t: picture[:, t.top * 4 : (t.top + t.height) * 4, t.left * 4 : (t.left + t.width) * 4]  # type: ignore[misc]
        for t in grid.tiles
    ]
    tiles = side_by_side(wide.chain, crops, grid.height, margins_of(grid, 40, 56, 4), CPU).sums
    assert len(grid.tiles) > 1
    assert torch.allclose(whole[0], tiles[0], rtol=1e-5)
    assert torch.allclose(whole[-1], tiles[-1], rtol=1e-3)


@torch.no_grad()
def test_sums_that_half_precision_spoils_are_computed_again_in_float32() -> None:
    torch.manual_seed(0)
    network = Vae({"block_out_channels": [16], "norm_num_groups": 8}).eval().requires_grad_(False).to(torch.float16)
    network.encoder.down_blocks[-1].resnets[0].conv2.weight.fill_(6e4)  # its sums are beyond float16, not beyond float32
    chain = KLAutoencoder(network).parts().encoder[1].chain
    assert chain is not None
    features = torch.randn(16, 8, 8)
    half = chain.advance(1, chain.advance(0, chain.begin(features[None]), None), None)
    assert not torch.isfinite(half[0]).all()
    sums = side_by_side(chain, [lambda: features], 8, [(0, 0, 0, 0)], CPU).sums
    assert len(sums) == chain.length
    assert all(bool(torch.isfinite(each).all()) for each in sums)
    assert network.dtype == torch.float16
