"""Adapters of single-image networks: merged by their dials, trained, and refused where they do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import srcli
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from torch import nn
from training_case import make_photos

from srcli.config import UpscaleConfig
from srcli.engine.mix import MixingEngine
from srcli.families.network.file import read, without_remerging
from srcli.images.canvas import Canvas
from srcli.networks.adapters import AdapterInfo, attach, attach_frozen, extract, load_adapter, save_adapter, use_adapters
from srcli.opening import model_of, open_engine
from srcli.store.weights import sha256_of

MAKE: dict[str, Callable[[], nn.Module]] = {
    "compact": lambda: Compact(num_feat=8, num_conv=3, upscale=2),
    "safmn": lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=2),
    "span": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=2, norm=False),
    "swinir": lambda: SwinIR(
        img_size=16,
        window_size=8,
        depths=[2],
        embed_dim=12,
        num_heads=[2],
        mlp_ratio=2,
        upsampler="pixelshuffledirect",
        upscale=2,
    ),
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    for name, make in MAKE.items():
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how SwinIR is written
            tensors = make().state_dict()
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


def make_adapter(network: Path, folder: Path, name: str, **about: Any) -> Path:
    """With random weights, of all layers."""
    model = read(network).model
    without_remerging(model)
    torch.manual_seed(len(name))
    with torch.no_grad():
        for parameter in attach(model, name, 2, 2, ".*"):
            parameter.normal_(0, 0.05)
    return save_adapter(extract(model, name, AdapterInfo(2, 2, str(network), name, **about)), folder / name)


def opened(network: Path, **adapters: Path) -> MixingEngine:
    config = UpscaleConfig(("a",), Path("b"), model=str(network), device="cpu", dtype="fp32", adapters=adapters)
    spec = model_of(config)
    return open_engine(spec, config, [spec.settings])


# Merged --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_merged_equals_unmerged_and_each_setting_is_one_pass(
    name: str, networks: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    network = networks / f"{name}.safetensors"
    files = {each: make_adapter(network, tmp_path, each) for each in ("pixel", "semantic")}
    engine = opened(network, **files)
    model = read(network)
    without_remerging(model.model)
    for each, file in files.items():
        attach_frozen(model.model, load_adapter(file, each))
    canvas, grid = Canvas(photo, 2), [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.5, 1.5), (1.0, 1.0)]
    settings = [{"lambda_pixel": pixel, "lambda_semantic": semantic} for pixel, semantic in grid]
    results = dict(engine.restore_all(canvas, settings))
    picture = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    for index, working in enumerate((["pixel", "semantic"], ["pixel"], [])):
        use_adapters(model.model, working)
        assert (results[index] - (model(picture)[0] * 2 - 1)).abs().max() < 1e-5
    assert torch.equal(results[0], results[4])
    assert (results[0] - results[3]).abs().max() > 1e-4
    mixture = engine.restorer.mix({"strength": 1.0, **settings[3]}, canvas)
    assert len(mixture.weights) == 1


def test_a_map_leads_the_strength_alone(networks: Path, photo: np.ndarray, tmp_path: Path) -> None:
    network = networks / "compact.safetensors"
    file = make_adapter(network, tmp_path, "pixel")
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(np.zeros(photo.shape[:2], np.uint8)).save(tmp_path / "map.png")

    def upscaled(name: str, *options: object) -> np.ndarray:
        where = ("-o", tmp_path / f"{name}.png", "--model", network, "--device", "cpu", "--dtype", "fp32")
        done = srcli("upscale", tmp_path / "a.png", *where, *options)
        assert done.returncode == 0, done.stderr
        return np.asarray(Image.open(tmp_path / f"{name}.png"))

    black = upscaled("black", "--pixel", file, "--lambda-map", tmp_path / "map.png")
    np.testing.assert_array_equal(black, upscaled("enlarged", "--strength", 0))
    bare, off = upscaled("bare"), upscaled("off", "--pixel", file, "--lambda-pixel", 0)
    np.testing.assert_array_equal(bare, off)
    assert not np.array_equal(bare, upscaled("on", "--pixel", file))


def test_an_adapter_of_another_network_is_refused(networks: Path, photo: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    network, other = networks / "compact.safetensors", tmp_path / "other.safetensors"
    torch.manual_seed(4)
    save_file(MAKE["compact"]().state_dict(), other)

    def told(model: Path, *options: object) -> str:
        done = srcli("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", model, "--device", "cpu", *options)
        assert done.returncode == 2
        return " ".join(done.stderr.split())

    by_sum = make_adapter(network, tmp_path / "by_sum", "pixel", base_sha256=sha256_of(network))
    assert "is of another network" in told(other, "--pixel", by_sum)
    by_shape = make_adapter(networks / "safmn.safetensors", tmp_path / "by_shape", "pixel")
    assert "the base has no layer `feats" in told(network, "--pixel", by_shape)
    alone = make_adapter(network, tmp_path / "alone", "semantic")
    assert "builds on a pixel adapter" in told(network, "--semantic", alone)
    assert "has no dial `--lambda-pixel`, since it has no pixel adapter" in told(network, "--lambda-pixel", 1)
