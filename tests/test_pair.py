"""Two models with a dial between them, and maps that lead a dial: through the command line, against eq. 8 computed here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, srcli
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact

from srcli.config import UpscaleConfig
from srcli.engine import parents
from srcli.families.network import restorer as networks
from srcli.images.canvas import Canvas
from srcli.opening import model_of, open_stream


def net(path: Path, seed: int, scale: int) -> Path:
    torch.manual_seed(seed)
    save_file(Compact(num_feat=8, num_conv=2, upscale=scale).state_dict(), path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """`p.safetensors` (×2) and `s.safetensors` (×3), and rows of pairs of them and others."""
    folder = tmp_path / "models"
    folder.mkdir()
    net(folder / "p.safetensors", 1, 2)
    net(folder / "s.safetensors", 2, 3)
    net(folder / "same.safetensors", 3, 1)
    (folder / "models.toml").write_text(
        """
[models.both]
family = "pair"
native_scale = 3
pixel = "p.safetensors"
semantic = { model = "s.safetensors", dials = { strength = 0.5 } }

[models.large]
family = "network"
native_scale = 2
min_side = 100
color_fix = "wavelet"
base = { file = "p.safetensors" }

[models.mixed]
family = "pair"
native_scale = 2
pixel = "large"
semantic = "both"

[models.repairing]
family = "pair"
native_scale = 1
pixel = "same.safetensors"
semantic = { model = "same.safetensors", dials = { strength = 0 } }
"""
    )
    return folder


def upscale(models: Path, photo: Path, out: Path, model: str, *more: object) -> Done:
    given = ("--models-file", models / "models.toml", "--model", model, "--device", "cpu", "--dtype", "fp32", "--format", "png")
    return srcli("upscale", photo, "-o", out, *given, *more)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float)


def made(models: Path, photo: Path, out: Path, model: str, *more: object) -> np.ndarray:
    """The result for one photo."""
    done = upscale(models, photo, out, model, *more)
    assert done.returncode == 0, done.stderr
    return picture(out)


def refused(models: Path, photos: Path, model: str) -> str:
    """What is told on the way out."""
    done = upscale(models, photos, models / "never", model)
    assert done.returncode == 2
    return " ".join(done.stderr.split())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The networks that are loaded, in their order."""
    seen: list[str] = []
    take = networks.take

    def noted(path: Path) -> Any:
        seen.append(path.stem)
        return take(path)

    monkeypatch.setattr(networks, "take", noted)
    return seen


# Pairs ---------------------------------------------------------------------------------------------------------------


def test_two_files_are_blended_as_eq_8_says(models: Path, photo_folder: Path, tmp_path: Path) -> None:
    photo = photo_folder / "a.png"
    sizes = ("--scale", "3")
    fidelity = made(models, photo, tmp_path / "p.png", f"{models / 'p.safetensors'}", "--scale", "2")
    detail = made(models, photo, tmp_path / "s.png", f"{models / 's.safetensors'}")
    x = np.asarray(Image.open(photo).resize((252, 180), Image.Resampling.BICUBIC)).astype(float)
    large = np.asarray(Image.fromarray(fidelity.astype(np.uint8)).resize((252, 180), Image.Resampling.BICUBIC)).astype(float)
    name = f"{models / 'p.safetensors'}+{models / 's.safetensors'}"
    blend = made(models, photo, tmp_path / "b.png", name, "--lambda-pixel", "0.8", "--lambda-semantic", "0.3", *sizes)
    expected = x + 0.8 * (large - x) + 0.3 * (detail - large)
    assert np.abs(blend - expected).max() <= 1.6  # of levels: what was rounded to 8 bits here is not there
    assert np.abs(blend - detail).mean() > 3
    assert np.abs(blend - x).mean() > 3


def test_a_row_sets_its_parents_and_a_pass_of_weight_0_is_not_loaded(
    models: Path, photo_folder: Path, tmp_path: Path, loads: list[str]
) -> None:
    photo = photo_folder / "a.png"
    half = made(models, photo, tmp_path / "half.png", str(models / "s.safetensors"), "--strength", "0.5")
    loads.clear()
    assert np.abs(made(models, photo, tmp_path / "s.png", "both", "--lambda-semantic", "1") - half).max() <= 1
    assert loads == ["s"]
    made(models, photo, tmp_path / "p.png", "both", "--lambda-semantic", "0")
    assert loads == ["s", "p"]
    made(models, photo, tmp_path / "x.png", "both", "--lambda-semantic", "0", "--lambda-pixel", "0")
    assert loads == ["s", "p"]


def test_pairs_of_pairs_and_of_restorers_and_own_least_sides(models: Path, photo_folder: Path, tmp_path: Path) -> None:
    photo = photo_folder / "a.png"
    alone = made(models, photo, tmp_path / "large.png", "large", "--color-fix", "none")
    config = UpscaleConfig((str(photo),), tmp_path, model="mixed", models_file=models / "models.toml", device="cpu")
    assert model_of(config).color_fix == "wavelet"  # the first that a parent has
    same = made(models, photo, tmp_path / "p.png", "mixed", "--lambda-semantic", "0", "--color-fix", "none")
    assert np.abs(same - alone).max() <= 1
    detail = made(models, photo, tmp_path / "both.png", "both", "--scale", "2")
    mixed = made(models, photo, tmp_path / "s.png", "mixed", "--lambda-semantic", "1", "--color-fix", "none")
    assert np.abs(mixed - detail).mean() < 2
    repaired = made(models, photo, tmp_path / "r.png", "repairing", "--lambda-semantic", "1")
    assert np.abs(repaired - picture(photo)).max() <= 1  # a network of strength 0 at scale 1
    with_larger = f"{models / 'same.safetensors'}+{models / 'p.safetensors'}"
    assert made(models, photo, tmp_path / "mixed.png", with_larger).shape == (120, 168, 3)


def test_models_take_turns_where_memory_has_no_room_for_both(
    models: Path, photo_folder: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upscale(models, photo_folder, tmp_path / "one", "both").returncode == 0
    assert loads == ["p", "s"]
    monkeypatch.setattr(parents, "free_bytes", lambda device: parents.RESERVE)
    loads.clear()
    assert upscale(models, photo_folder, tmp_path / "other", "both").returncode == 0
    assert loads == ["p", "s"]  # once for all three photos
    for path in (tmp_path / "one").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "other" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_parent_that_runs_out_of_memory_gets_that_of_the_other(
    models: Path, tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = UpscaleConfig(("a",), tmp_path, model="both", models_file=models / "models.toml", device="cpu")
    engine = open_stream(config, model_of(config)).engine
    photo = Canvas(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8), 3)
    (plain,) = engine.restore([photo])
    answer = networks.NetworkRestorer._answer

    def greedy(self: Any, picture: torch.Tensor) -> torch.Tensor:
        if self.name == "s" and not engine.takes_turns:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return answer(self, picture)

    monkeypatch.setattr(networks.NetworkRestorer, "_answer", greedy)
    (result,) = engine.restore([photo])
    assert torch.equal(result, plain)
    assert engine.takes_turns
    engine.restore([photo])
    assert loads == ["p", "s", "s", "p", "s"]


def test_a_sweep_asks_each_parent_once_a_photo(
    models: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    answer = networks.NetworkRestorer._answer

    def noted(self: Any, batch: torch.Tensor) -> torch.Tensor:
        calls.append(self.name)
        return answer(self, batch)

    monkeypatch.setattr(networks.NetworkRestorer, "_answer", noted)
    given = ("--models-file", models / "models.toml", "--model", "both", "--device", "cpu", "--lambda-semantic", "0:1:0.25")
    done = srcli("sweep", photo_folder / "a.png", "-o", tmp_path / "swept", *given, "--lambda-pixel", "0.5,1", "--save-images")
    assert done.returncode == 0, done.stderr
    assert sorted(calls) == ["p", "s"]
    plain = made(
        models, photo_folder / "a.png", tmp_path / "one.png", "both", "--lambda-semantic", "0.25", "--lambda-pixel", "0.5"
    )
    swept = picture(tmp_path / "swept" / "images" / "lambda_pixel=0.5,lambda_semantic=0.25" / "a.png")
    assert np.abs(swept - plain).max() <= 1


def test_models_commands_know_what_a_pair_is_made_of(models: Path) -> None:
    shown = json.loads(srcli("models", "show", "both", "--models-file", models / "models.toml", "--json").stdout)
    assert shown["state"] == "ready"
    assert (shown["pixel"]["name"], shown["semantic"]["dials"]) == ("p", {"strength": 0.5})
    assert srcli("models", "fetch", "both", "--models-file", models / "models.toml").stdout.split() == [
        str(models / "p.safetensors"),
        str(models / "s.safetensors"),
    ]
    joined = f"{models / 'p.safetensors'}+{models / 's.safetensors'}"
    assert srcli("models", "fetch", joined).stderr.endswith(f"--model {joined}`\n")  # no registry file to name
    of_rows = srcli("models", "fetch", "tiny+large", "--models-file", models / "models.toml").stderr
    assert of_rows.endswith(f"--model tiny+large --models-file {models / 'models.toml'}`\n")
    (models / "s.safetensors").unlink()
    listed = json.loads(srcli("models", "list", "--models-file", models / "models.toml", "--json").stdout)
    assert {row["name"]: row["state"] for row in listed}["both"] == "files missing"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('pixel = "me"\nsemantic = "tiny"', "`me` on `me`: a model cannot build on itself"),
        ('pixel = "other"\nsemantic = "tiny"', "`me` on `other` on `me`: a model cannot build on itself"),
        ('pixel = "nothing"\nsemantic = "nil"', "- unknown model `nothing`"),
        ('pixel = "nothing"\nsemantic = "nil"', "- unknown model `nil`"),
        ('pixel = "tiny"\nsemantic = "tiny"', "`me` is made of one model alone, with the same settings"),
        ('pixel = "tiny"\nsemantic = { model = "p.safetensors", dials = { blur = 1 } }', "`blur` = 1 is no dial of it"),
        ('pixel = "tiny"', "`semantic` is missing"),
        ('pixel = "tiny"\nsemantic = { dials = {} }', "`semantic`: `model` is missing"),
        ('pixel = "tiny"\nsemantic = { model = "p.safetensors", dial = 1 }', "unknown key `dial`"),
        ('pixel = "tiny"\nsemantic = "p.safetensors"\nbase = { path = "." }', "pair of models has no base"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_told(models: Path, photo_folder: Path, row: str, fault: str) -> None:
    other = '[models.other]\nfamily = "pair"\nnative_scale = 2\npixel = "me"\nsemantic = "tiny"\n'
    (models / "models.toml").write_text(f'[models.me]\nfamily = "pair"\nnative_scale = 2\n{row}\n{other}')
    assert fault in refused(models, photo_folder, "me")


def test_a_row_may_be_called_as_its_parents_file_is(models: Path, photo_folder: Path, tmp_path: Path) -> None:
    row = 'family = "pair"\nnative_scale = 2\npixel = "p.safetensors"\nsemantic = "s.safetensors"\n'
    (models / "models.toml").write_text(f"[models.p]\n{row}")
    assert made(models, photo_folder / "a.png", tmp_path / "out.png", "p").shape == (120, 168, 3)


def test_joined_names_that_are_no_models_are_told(models: Path, photo_folder: Path) -> None:
    told = refused(models, photo_folder, "tyni+nothing")
    assert "unknown model `tyni`; did you mean `tiny`?" in told
    assert "unknown model `nothing`" in told
    (models / "s.safetensors").unlink()
    (models / "p.safetensors").unlink()
    told = refused(models, photo_folder, "both")
    assert f"{models / 'p.safetensors'}" in told
    assert f"{models / 's.safetensors'}" in told
    done = srcli("train-pixel", "--data", photo_folder, "-o", models / "run", "--model", "photo")
    assert done.returncode == 2
    assert "pair of models" in done.stderr


# Maps ----------------------------------------------------------------------------------------------------------------


def painted(photo: Path, folder: Path) -> Path:
    """A map that is black on the left, white on the right."""
    with Image.open(photo) as image:
        width, height = image.size
    values = np.zeros((height, width), np.uint8)
    values[:, width // 2 :] = 255
    folder.mkdir(exist_ok=True)
    Image.fromarray(values).save(folder / f"{photo.stem}.png")
    return folder


@pytest.mark.parametrize(
    ("model", "dial"), [("both", "--lambda-semantic"), ("large", "--strength"), ("tiny", "--lambda-semantic")]
)
def test_a_map_leads_the_dial_from_0_to_its_value(
    models: Path, photo_folder: Path, tmp_path: Path, model: str, dial: str
) -> None:
    photo = photo_folder / "a.png"
    maps = painted(photo, tmp_path / "maps")
    plain = ("--color-fix", "none")
    black, white = (made(models, photo, tmp_path / f"{v}.png", model, dial, v, *plain) for v in ("0", "1"))
    mapped = made(models, photo, tmp_path / "m.png", model, dial, "1", "--lambda-map", maps, *plain)
    middle, far = black.shape[1] // 2, 40
    assert np.abs(white - black).max() > 10
    assert np.abs(mapped - black)[:, : middle - far].max() <= 1
    assert np.abs(mapped - white)[:, middle + far :].max() <= 1
    tiled = made(
        models, photo, tmp_path / "t.png", model, dial, "1", "--lambda-map", maps, "--tile", "128", "--overlap", "64", *plain
    )
    assert np.abs(tiled - mapped).mean() < 1


def spoil_size(path: Path) -> None:
    Image.open(path).resize((30, 30)).save(path)


def spoil_colour(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    image.putpixel((0, 0), (255, 0, 0))
    image.save(path)


def spoil_alpha(path: Path) -> None:
    image = Image.open(path).convert("LA")
    image.putpixel((0, 0), (0, 0))
    image.save(path)


@pytest.mark.parametrize(
    ("spoil", "reason", "planned"),
    [
        (spoil_size, "30 x 30 px, and the photo 84 x 60", 1),
        (spoil_colour, "has colours", 0),
        (spoil_alpha, "is transparent in places", 0),
    ],
)
def test_a_map_that_does_not_fit_fails_its_photo_alone(
    models: Path, photo_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str, planned: int
) -> None:
    for name in ("a.png", "b.jpg"):
        painted(photo_folder / name, tmp_path / "maps")
    spoil(tmp_path / "maps" / "a.png")
    maps = ("--lambda-map", tmp_path / "maps")
    assert upscale(models, photo_folder, tmp_path / "out", "both", *maps, "--dry-run").returncode == planned
    done = upscale(models, photo_folder, tmp_path / "out", "both", *maps)
    assert done.returncode == 1
    assert reason in " ".join(done.stderr.split())
    assert "no map for 1 photo:" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["b.png", "c.png"]


def test_maps_of_no_photo_and_models_without_such_a_dial_are_refused(models: Path, photo_folder: Path, tmp_path: Path) -> None:
    painted(photo_folder / "a.png", tmp_path / "maps")
    (tmp_path / "maps" / "a.png").rename(tmp_path / "maps" / "z.png")
    done = upscale(models, photo_folder, tmp_path / "out", "both", "--lambda-map", tmp_path / "maps")
    assert done.returncode == 2
    assert "belongs to a photo" in done.stderr
