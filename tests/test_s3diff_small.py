"""The small S3Diff, trained for minutes by `scripts/builtin/s3diff-*.toml`: its dials steer where they say they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from srcli.python import load
from srcli.store.weights import sha256_of

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data" / "s3diff-small"


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(ROOT / "scripts" / "builtin" / "s3diff-row.toml").read_text()]
    for name in ("semantic", "estimator"):
        file = DATA / name / "adapter_model.safetensors"
        rows.append(f'adapters.{name} = {{ path = "{file}", sha256 = "{sha256_of(file)}" }}\n')
    file = tmp_path_factory.mktemp("small") / "models.toml"
    file.write_text("".join(rows))
    return file


def photos(blur_px: float = 0, noise: float = 0) -> list[Image.Image]:
    """Middles of the sample photos, 64 pixels a side, damaged."""
    damaged = []
    for name in ("kitten", "otter", "travel/colosseum"):
        with Image.open(ROOT / "samples" / f"{name}.jpg") as image:
            left, top = image.width // 2 - 32, image.height // 2 - 32
            photo = image.convert("RGB").filter(ImageFilter.GaussianBlur(blur_px)).crop((left, top, left + 64, top + 64))
        levels = np.asarray(photo) + np.random.default_rng(0).normal(0, noise, (64, 64, 3))
        damaged.append(Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)))
    return damaged


def detail(models_file: Path, inputs: list[Image.Image], **dials: float) -> float:
    """The energy of fine detail in the results, mean over photos: how much the luma differs from its neighbours' mean."""
    upscaler = load("s3diff-small", models_file=models_file, device="cpu", dtype="fp32", **dials)
    energies = []
    for photo in inputs:
        luma = np.asarray(upscaler(photo).convert("L"), np.float64)
        around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
        energies.append(np.abs(4 * luma[1:-1, 1:-1] - around).mean())
    return float(np.mean(energies))


def test_more_noise_said_means_more_smoothing(models_file: Path) -> None:
    inputs = photos(noise=12)
    low, high = (detail(models_file, inputs, noise=noise, blur=0.5, guidance_scale=1) for noise in (0, 1))
    assert high < 0.9 * low


def test_less_blur_said_means_less_sharpening(models_file: Path) -> None:
    inputs = photos(blur_px=1)
    low, high = (detail(models_file, inputs, blur=blur, noise=0.2, guidance_scale=1) for blur in (0, 1))
    assert high > 1.03 * low


def test_guidance_raises_the_contrast_of_texture(models_file: Path) -> None:
    inputs = photos()
    energies = [detail(models_file, inputs, guidance_scale=scale, blur=0.5, noise=0.2) for scale in (0.8, 1, 1.3)]
    assert energies[0] < energies[1] < energies[2]
    assert energies[2] > 1.02 * energies[1]
