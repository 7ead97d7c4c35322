from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from srcli.engine.parts import Room, run_part
from srcli.errors import ModelError
from srcli.models.backbone import Autoencoder, PatchAutoencoder, load_autoencoder
from srcli.models.lapped import FREE_PART, SCALES, LappedAutoencoder, border_filter, dct_matrix

PLAIN = LappedAutoencoder([1.0] * 48)


def picture(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height * width)) * 2 - 1


def impulse(autoencoder: Autoencoder, channel: int, side: int = 5) -> Tensor:
    """What one coefficient in the middle cell decodes to, (3, 4 side, 4 side)."""
    latent = torch.zeros(1, 48, side, side)
    latent[0, channel, side // 2, side // 2] = 1
    return autoencoder.decode(latent)[0]


@pytest.mark.parametrize("size", [(4, 4), (4, 12), (8, 4), (20, 36), (64, 60)])
def test_pictures_of_all_sizes_come_back(size: tuple[int, int]) -> None:
    original = picture(*size)
    latent = LappedAutoencoder().encode(original)
    assert latent.shape == (2, 48, size[0] // 4, size[1] // 4)
    back = LappedAutoencoder().decode(latent)
    assert torch.allclose(back, original, rtol=0, atol=4e-6)  # below half a 16-bit level


def test_latents_come_back_too() -> None:
    """Encoding undoes decoding: the transform is square, so nothing a network adds is lost."""
    latent = torch.randn(1, 48, 6, 7, generator=torch.Generator().manual_seed(1))
    autoencoder = LappedAutoencoder()
    assert torch.allclose(autoencoder.encode(autoencoder.decode(latent)), latent, rtol=0, atol=2e-5)


def test_half_precision_outside_does_not_reach_the_transform() -> None:
    original = picture(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        back = LappedAutoencoder().decode(LappedAutoencoder().encode(original))
    assert back.dtype == torch.float32
    assert torch.allclose(back, original, rtol=0, atol=4e-6)
    assert LappedAutoencoder().encode(original.bfloat16()).dtype == torch.bfloat16


def test_a_flat_colour_is_one_coefficient_a_colour() -> None:
    latent = PLAIN.encode(torch.tensor([0.3, -0.2, 0.7]).view(1, 3, 1, 1).expand(1, 3, 12, 16))
    means = latent.view(3, 16, -1)
    assert torch.allclose(means[:, 1:], torch.zeros(3, 15, 12), rtol=0, atol=1e-6)
    expected = 4 * dct_matrix(3).float() @ torch.tensor([0.3, -0.2, 0.7])
    assert torch.allclose(means[:, 0], expected[:, None].expand(3, 12), rtol=0, atol=1e-5)


def test_a_gray_picture_has_no_colour_coefficients() -> None:
    gray = picture(16, 16)[:, :1].expand(2, 3, 16, 16)
    assert float(PLAIN.encode(gray)[:, 16:].abs().max()) < 1e-5


def test_basis_functions_are_eight_pixels_wide_and_fade() -> None:
    """The smooth ones end near zero; those of a patch end in a step of their full height."""
    for channel in range(16):
        function = impulse(PLAIN, channel)
        outside = function.clone()
        outside[:, 6:14, 6:14] = 0
        assert float(outside.abs().max()) < 1e-6
    broad = impulse(PLAIN, 0)[0]
    steps = broad.diff(dim=1).abs().max() / broad.max()
    assert float(steps) < 0.4
    patch = impulse(PatchAutoencoder(4, 1.0), 5)[0]
    assert float(patch.diff(dim=1).abs().max() / patch.max()) == 1


def test_a_wrong_cell_makes_no_step_at_block_borders() -> None:
    """Half the cells brighter by one amount, as a network's error might have it: the edge is a ramp over eight pixels."""
    latent = torch.zeros(1, 48, 4, 8)
    latent[:, 0, :, 4:] = 1
    row = PLAIN.decode(latent)[0, 0, 8]
    height = row[-1] - row[0]
    assert float(row.diff().abs().max() / height) < 0.35
    assert int((row.diff().abs() > 0.02 * height).sum()) >= 5


def energy_between_blocks(autoencoder: Autoencoder) -> float:
    """How much more adjacent pixels differ across block borders than inside, for photo-like random latents, as a ratio."""
    generator = torch.Generator().manual_seed(5)
    latent = torch.randn(4, 48, 48, 48, generator=generator)
    if isinstance(autoencoder, LappedAutoencoder):
        frequency = torch.arange(4.0)
        falling = torch.exp(-(frequency[:, None] + frequency)).flatten().repeat(3)
        latent = latent * falling.view(1, 48, 1, 1)
    else:  # the same error, smooth within each patch, as a network makes it
        latent = functional.avg_pool2d(latent.view(4, 3, 16, 48, 48).mean(2), 1).repeat_interleave(16, 1)
    steps = autoencoder.decode(latent).diff(dim=-1).square().mean((0, 1, 2))
    across = steps[3::4].mean()
    inside = torch.cat([steps[0::4], steps[1::4], steps[2::4]]).mean()
    return float(across / inside.clamp(min=1e-12))


def test_random_errors_draw_no_grid() -> None:
    assert energy_between_blocks(PLAIN) < 2
    assert energy_between_blocks(PatchAutoencoder()) > 1e3


def coding_gain(analysis: Tensor, synthesis: Tensor, correlation: float = 0.95) -> float:
    """Of a 4-band transform for a first-order process, in dB (Katto and Yasuda 1991)."""
    place = torch.arange(8.0, dtype=torch.float64)
    covariance = correlation ** (place[:, None] - place).abs()
    energies = torch.einsum("ki,ij,kj->k", analysis, covariance, analysis) * synthesis.square().sum(1)
    return float(-10 * energies.log10().mean())


def test_the_free_part_maximises_the_coding_gain() -> None:
    def bands(border: Tensor) -> Tensor:
        taps = torch.zeros(4, 8, dtype=torch.float64)
        taps[:2, :4], taps[2:, 4:] = border[2:], border[:2]
        return dct_matrix(4) @ taps

    def gain_of(border: Tensor) -> float:
        return coding_gain(bands(border), bands(torch.linalg.inv(border).T))

    gain = gain_of(border_filter())
    assert gain == pytest.approx(8.635, abs=0.002)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = np.array(FREE_PART) + rng.normal(0, 0.05, (2, 2))
        assert gain_of(border_filter(other.tolist())) < gain
    assert gain_of(torch.eye(4, dtype=torch.float64)) == pytest.approx(7.57, abs=0.01)  # no filter: the block DCT


def test_gradients_are_those_of_the_linear_map() -> None:
    autoencoder = LappedAutoencoder()
    latent = torch.randn(1, 48, 3, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weight = picture(12, 12)[:1]
    (autoencoder.decode(latent) * weight).sum().backward()  # type: ignore[no-untyped-call]
    assert latent.grad is not None
    direction = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    expected = (autoencoder.decode(direction) * weight).sum()
    assert float((latent.grad * direction).sum()) == pytest.approx(float(expected), rel=1e-4)


def test_a_base_keeps_its_scales(tmp_path: Path) -> None:
    scales = [1 + index / 10 for index in range(48)]
    LappedAutoencoder(scales).save_config(tmp_path / "vae")
    loaded = load_autoencoder(tmp_path)
    assert isinstance(loaded, LappedAutoencoder)
    assert loaded.scales == tuple(scales)
    assert torch.allclose(loaded.encode(picture(8, 8)), PLAIN.encode(picture(8, 8)) * torch.tensor(scales).view(1, 48, 1, 1))


@pytest.mark.parametrize("scales", [None, [1.0] * 47, [1.0] * 47 + [0.0], [1.0] * 47 + [math.inf], "wide"])
def test_unusable_scales_are_told(tmp_path: Path, scales: object) -> None:
    (tmp_path / "vae").mkdir()
    config = {"_class_name": "LappedAutoencoder"} | ({} if scales is None else {"scales": scales})
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="scales"):
        load_autoencoder(tmp_path)


def test_the_default_scales_bring_photos_near_unit_energy() -> None:
    assert len(SCALES) == 48
    assert min(SCALES) > 1
    assert SCALES[0] < SCALES[5] < SCALES[15] < SCALES[31]


def test_tiles_with_half_a_cell_of_context_give_the_whole_picture() -> None:
    picture = torch.rand(3, 80, 120, generator=torch.Generator().manual_seed(0)) * 2 - 1
    parts = LappedAutoencoder().parts()
    room = Room(torch.device("cpu"), 2, 100 * parts.encoder[0].cell_bytes)
    (latent,) = run_part(parts.encoder[0], [picture], room, lambda run, batch: run(batch))
    assert torch.allclose(latent, LappedAutoencoder().encode(picture[None])[0], atol=1e-5)
    (decoded,) = run_part(parts.decoder[0], [latent], room, lambda run, batch: run(batch))
    assert torch.allclose(decoded, picture, atol=1e-5)
