from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import srcli
from scipy import ndimage
from torch import Tensor

from srcli.config.recipe_file import build_recipe
from srcli.errors import UsageError
from srcli.training.losses.references import FLAT, sharpened


def picture(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 24, 20, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.6


def edge(low: float = -0.5, high: float = 0.5) -> Tensor:
    plane = torch.full((1, 3, 32, 32), low)
    plane[..., 16:] = high
    return plane


def test_it_is_the_formula_with_scipys_gaussian() -> None:
    hq = picture()

    def blurred(values: Tensor) -> Tensor:
        options = {"axes": (2, 3), "mode": "mirror", "radius": 4}
        return torch.from_numpy(ndimage.gaussian_filter(values.double().numpy(), 1.2, **options)).float()

    residual = hq - blurred(hq)
    expected = hq + 0.7 * blurred((residual.abs() > FLAT).float()) * residual
    assert torch.allclose(sharpened(hq, 0.7, 1.2), expected.clamp(-1, 1), atol=1e-5)


def test_an_edge_becomes_steeper_and_stays_where_it_is() -> None:
    before, after = edge()[0, 0, 16], sharpened(edge(), 1.0, 1.2)[0, 0, 16]
    assert float(after[16] - after[15]) > 1.3 * float(before[16] - before[15])
    assert torch.allclose(after[:16], -after[16:].flip(0), atol=1e-6)
    assert torch.equal(after[:10], before[:10])


def test_flat_areas_and_their_noise_are_left_alone() -> None:
    noise = 0.3 + 0.2 * FLAT * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    assert torch.equal(sharpened(noise, 2.0, 1.2), noise)


def test_nothing_leaves_the_range_and_nothing_is_done_for_nothing() -> None:
    assert float(sharpened(edge(-1, 1), 3.0, 2.0).abs().max()) == 1
    hq = picture()
    assert sharpened(hq, 0.0, 1.2) is hq


@pytest.mark.parametrize("table", [{"sharpening": -1}, {"sigma_px": 0}, {"sharpening": 1, "sigma_px": 6}, {"sigma_px": 2}])
def test_settings_out_of_range_are_refused(table: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="references"):
        build_recipe("pisasr", "semantic", [{"references": table}])


def test_the_recipe_tells_them(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("references.sharpening = 0.75\n")
    told = srcli("train-semantic", "--recipe", tmp_path / "recipe.toml", "--show-recipe")
    assert told.returncode == 0, told.stderr
    assert "[references]" in told.stdout
    assert "sharpening = 0.75 # amount of an unsharp mask on them" in told.stdout
