"""The built-in model as everybody meets it: what its dials do, what it weighs, and the recipes that made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from commands import srcli
from PIL import Image

from srcli.config.recipe_file import build_recipe, read_recipe_file
from srcli.images.fidelity import luma
from srcli.networks.saved_adapters import load_adapter
from srcli.rows.lookup import find_model
from srcli.store.weights import adapter_path, base_file, base_folder, sha256_of

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "scripts" / "builtin"


def piece(name: str, folder: Path, left: int, top: int) -> Path:
    """64 x 64 pixels of a sample photo, noisy and with JPEG blocks."""
    file = folder / f"{name}.png"
    with Image.open(ROOT / "samples" / f"{name}.jpg") as photo:
        photo.convert("RGB").crop((left, top, left + 64, top + 64)).save(file)
    return file


def upscaled(sample: Path, folder: Path, pixel: float, semantic: float, model: str = "tiny") -> np.ndarray:
    """(256, 256, 3), uint8."""
    out = folder / f"{model}-{pixel}-{semantic}.png"
    options = ["--model", model, "--lambda-pixel", pixel, "--lambda-semantic", semantic, "--device", "cpu", "--dtype", "fp32"]
    done = srcli("upscale", sample, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    with Image.open(out) as image:
        return np.asarray(image)


def detail(picture: np.ndarray) -> float:
    """Mean size of steps between neighbours in brightness."""
    brightness = luma(picture)
    return float(np.abs(np.diff(brightness, axis=0)).mean() + np.abs(np.diff(brightness, axis=1)).mean())


def test_dials_at_zero_return_the_enlarged_input(tmp_path: Path) -> None:
    sample = piece("otter", tmp_path, 20, 20)
    with Image.open(sample) as photo:
        enlarged = np.asarray(photo.resize((256, 256), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(upscaled(sample, tmp_path, 0, 0).astype(int) - enlarged).max() <= 1


def test_the_pixel_dial_takes_noise_away(tmp_path: Path) -> None:
    blurred_background = piece("dragonfly", tmp_path, 120, 60)
    levels = [detail(upscaled(blurred_background, tmp_path, dial, 0)) for dial in (0, 0.5, 1)]
    assert levels[0] > levels[1] > levels[2]
    assert levels[2] < 0.75 * levels[0]


def test_the_semantic_dial_adds_detail(tmp_path: Path) -> None:
    sample = piece("otter", tmp_path, 20, 20)
    levels = [detail(upscaled(sample, tmp_path, 1, dial)) for dial in (0, 0.5, 1, 1.5)]
    assert levels[0] < levels[1] < levels[2] < levels[3]


def test_the_default_is_light_which_cleans_and_keeps_flat_pictures_flat(tmp_path: Path) -> None:
    background = piece("dragonfly", tmp_path, 120, 60)
    assert srcli("upscale", background, "-o", tmp_path / "x.png", "--device", "cpu", "--dtype", "fp32").returncode == 0
    with Image.open(tmp_path / "x.png") as image, Image.open(background) as photo:
        made, enlarged = np.asarray(image), np.asarray(photo.resize(image.size, Image.Resampling.BICUBIC))
    assert np.array_equal(made, upscaled(background, tmp_path, 1, 1, "light"))
    assert detail(made) < 0.7 * detail(enlarged)
    assert not np.array_equal(made, upscaled(background, tmp_path, 1, 0, "light"))
    Image.new("RGB", (64, 64), (200, 40, 40)).save(tmp_path / "flat.png")
    (tmp_path / "flat").mkdir()
    flat = upscaled(tmp_path / "flat.png", tmp_path / "flat", 1, 1, "light").astype(int)
    assert np.abs(flat - (200, 40, 40)).max() <= 4


def test_the_adapters_of_light_are_of_its_base_and_of_each_other() -> None:
    light = find_model("light")
    pixel, semantic = (load_adapter(adapter_path(light, stage), stage).info for stage in ("pixel", "semantic"))
    assert {pixel.base_sha256, semantic.base_sha256} == {sha256_of(base_file(light))}
    assert semantic.on_sha256 == sha256_of(adapter_path(light, "pixel"))
    assert {pixel.licence, semantic.licence, light.licence} == {"BSD-3-Clause"}


def test_both_adapters_were_trained_on_this_base_by_the_recipes_of_this_repository() -> None:
    tiny = find_model("tiny")
    made_by = {
        "pixel": ("pixel", "structure", "cameras", "fidelity", "wider", "finish", "tail", "balance"),
        "semantic": ("semantic", "detail"),
    }
    licences = {"pixel": "Apache-2.0", "semantic": "BSD-3-Clause"}
    for stage, parts in made_by.items():
        info = load_adapter(adapter_path(tiny, stage), stage).info
        assert (info.base, info.stage, info.licence) == ("tiny", stage, licences[stage])
        recipes = [build_recipe("pisasr", stage, [read_recipe_file(RECIPES / f"tiny-{part}.toml")]) for part in parts]
        assert {(recipe.rank, recipe.alpha) for recipe in recipes} == {(info.rank, info.alpha)}
        assert sum(recipe.steps for recipe in recipes) == info.steps
        # who trains on `tiny` starts from what made it
        assert build_recipe("pisasr", stage, tiny.recipe_layers(stage)) == recipes[0]


def test_the_model_adds_less_than_30_megabytes_to_the_package() -> None:
    folder = base_folder(find_model("tiny"))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 30e6
