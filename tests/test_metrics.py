"""The registry, what happens without packages and weights, and how values reach their libraries; no network is loaded."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import urllib.request
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srcli.errors import ImageError, ModelError, UsageError
from srcli.evaluation import metric_networks as networks
from srcli.evaluation import statistics
from srcli.evaluation.catalogue import ALONE, METRICS
from srcli.evaluation.measure import Results
from srcli.evaluation.metric_networks import FidNetwork, FidSum
from srcli.evaluation.metrics import Metric, Opened, open_metrics
from srcli.evaluation.reading import Reader, write_enlarged
from srcli.evaluation.report import marks, uncertainties
from srcli.images.codec import Picture, encode
from srcli.images.fidelity import psnr_y, ssim_y

CPU = torch.device("cpu")
Create = Callable[..., Any]


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    sr, hq = (generator.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(2))
    return sr, hq


@pytest.fixture
def pyiqa(monkeypatch: pytest.MonkeyPatch) -> Callable[[Create], None]:
    """Puts a pyiqa in place whose `create_metric` is the given one."""

    def install(create: Create) -> None:
        module = ModuleType("pyiqa")
        module.__spec__ = ModuleSpec("pyiqa", None)
        module.create_metric = create  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyiqa", module)

    return install


def lacking(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in packages else find(name, *rest))


def present(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    spec = ModuleSpec(package, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == package else find(name, *rest))


# Registry ------------------------------------------------------------------------------------------------------------


def test_those_without_a_reference_are_the_noncommercial_packages() -> None:
    assert set(networks.IQA_NAMES) == set(ALONE) == {info.name for info in METRICS.values() if info.noncommercial}


def test_directions_and_borders_are_those_of_the_papers() -> None:
    higher = {info.name for info in METRICS.values() if info.higher_is_better}
    assert higher == {"psnr", "ssim", "clipiqa", "musiq", "maniqa"}
    assert {info.name for info in METRICS.values() if info.crops_border} == {"psnr", "ssim"}
    assert [info.name for info in METRICS.values() if not info.per_image] == ["fid"]
    assert METRICS["lpips"].better(0.1, 0.2)
    assert METRICS["psnr"].better(30.0, 20.0)


def test_fidelity_metrics_pass_on_the_border(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    opened = open_metrics(["ssim", "psnr"], CPU, crop_border=3)
    assert [metric.info.name for metric in opened.metrics] == ["psnr", "ssim"]
    assert [metric(sr, hq) for metric in opened.metrics] == [psnr_y(sr, hq, 3), ssim_y(sr, hq, 3)]


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(UsageError, match="`psrn`"):
        open_metrics(["psrn", "ssim"], CPU)


def test_a_reference_must_be_there_and_of_the_same_size(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sr, hq = pair
    psnr = open_metrics(["psnr"], CPU).metrics[0]
    with pytest.raises(ImageError, match="reference"):
        psnr(sr)
    with pytest.raises(ImageError, match=r"24 x 20 px .* 23 x 20 px"):
        psnr(sr, hq[:, :-1])


# Missing packages and weights ----------------------------------------------------------------------------------------


def test_what_lacks_its_package_is_told_with_a_command_and_the_others_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_distribution(name: str) -> None:
        raise PackageNotFoundError(name)

    lacking(monkeypatch, "torchvision", "torch_fidelity", "pyiqa")
    monkeypatch.setattr("importlib.metadata.distribution", no_distribution)
    opened = open_metrics(METRICS, CPU)
    assert [metric.info.name for metric in opened.metrics] == ["psnr", "ssim"]
    assert opened.fid is None
    assert set(opened.missing) == set(METRICS) - {"psnr", "ssim"}
    for name, fault in opened.missing.items():
        assert f"`{name}`" in fault.message
        assert "pip install" in fault.hint
    assert "srcli[eval]" in opened.missing["lpips"].hint
    assert "noncommercial" in opened.missing["niqe"].hint


def test_vgg_metrics_without_weights_name_the_fetch_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    present(monkeypatch, "torchvision")
    for name in ("lpips-vgg", "dists"):
        fault = open_metrics([name], CPU).missing[name]
        assert str(tmp_path) in fault.message
        assert fault.hint == "srcli models fetch lpips-vgg"


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch, pyiqa: Callable[[Create], None]) -> None:
    asked: list[object] = []

    def find(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise OSError("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", find)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    pyiqa(lambda name, device: urllib.request.urlopen("http://weights.invalid/file"))
    fault = open_metrics(["musiq"], CPU).missing["musiq"]
    assert "missing" in fault.message
    assert fault.hint == "srcli eval --fetch --metrics musiq"
    assert asked == []
    assert socket.getaddrinfo is find
    fault = open_metrics(["musiq"], CPU, allow_download=True).missing["musiq"]
    assert asked == ["weights.invalid"]
    assert "no such host" in fault.message


def test_what_is_not_in_the_hubs_cache_is_missing_too(pyiqa: Callable[[Create], None], tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    pyiqa(lambda name, device: hf_hub_download("nobody/nothing", "weights.bin", cache_dir=tmp_path))
    assert open_metrics(["maniqa"], CPU).missing["maniqa"].hint == "srcli eval --fetch --metrics maniqa"


def test_a_library_that_fails_otherwise_is_told_as_that(pyiqa: Callable[[Create], None]) -> None:
    def create(name: str, device: torch.device) -> None:
        raise ImportError("No module named 'timm'\nmore")

    pyiqa(create)
    fault = open_metrics(["niqe"], CPU).missing["niqe"]
    assert fault.message == "`niqe` cannot be loaded: No module named 'timm'"
    assert "fetch" not in fault.hint


def test_loading_reads_pickles_safely_and_leaves_random_numbers_and_output_alone(
    pyiqa: Callable[[Create], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)

    def create(name: str, device: torch.device) -> torch.nn.Module:
        seen.append((name, os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]))
        print("loading")  # noqa: T201
        return torch.nn.Linear(2, 2)

    pyiqa(create)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    open_metrics(["maniqa"], CPU)
    assert torch.rand(1) == expected
    assert seen == [("maniqa-pipal", "1")]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert capsys.readouterr().out == ""


# Values --------------------------------------------------------------------------------------------------------------


def test_pyiqa_sees_the_picture_as_floats_between_0_and_1(
    pyiqa: Callable[[Create], None], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    seen: list[torch.Tensor] = []

    def score(image: torch.Tensor) -> torch.Tensor:
        seen.append(image)
        return torch.tensor([[4.5]])

    pyiqa(lambda name, device: score)
    assert open_metrics(["niqe"], CPU).metrics[0](pair[0]) == 4.5
    assert seen[0].shape == (1, 3, 20, 24)
    assert torch.equal(seen[0][0, 2] * 255, torch.from_numpy(pair[0][..., 2]).float())


def test_lpips_is_called_for_0_to_1_and_keeps_no_state(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    class Recorder(torch.nn.Module):
        calls = 0

        def __init__(self, net_type: str, normalize: bool) -> None:
            super().__init__()
            assert (net_type, normalize) == ("alex", True)

        def forward(self, sr: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
            Recorder.calls += 1
            return (sr - hq).abs().mean()

        def reset(self) -> None:
            Recorder.calls -= 1

    present(monkeypatch, "torchvision")
    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", Recorder)
    metric = open_metrics(["lpips"], CPU).metrics[0]
    sr, hq = pair
    assert metric(sr, hq) == pytest.approx(np.abs(sr / 255 - hq / 255).mean(), abs=1e-6)
    assert Recorder.calls == 0


def test_a_picture_that_a_network_cannot_take_is_that_pictures_error(
    pyiqa: Callable[[Create], None], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    def score(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Kernel size can't be greater than actual input size\nat ...")

    pyiqa(lambda name, device: score)
    with pytest.raises(ImageError, match="`clipiqa` cannot be computed for 24 x 20 px: Kernel size"):
        open_metrics(["clipiqa"], CPU).metrics[0](pair[0])


def test_fid_of_one_feature_is_the_distance_of_two_normal_distributions() -> None:
    sr, hq = [1.0, 4.0, 2.0, 9.0], [3.0, 3.5, 8.0, 1.0]
    total = FidSum(width=1)
    assert np.isnan(total.value())
    for one, other in zip(sr, hq, strict=True):
        total.add(torch.tensor([[one]]), torch.tensor([[other]]))
    expected = (np.mean(sr) - np.mean(hq)) ** 2 + (np.std(sr, ddof=1) - np.std(hq, ddof=1)) ** 2
    assert total.value() == pytest.approx(expected, rel=1e-6)


def test_fid_features_are_taken_from_bytes_in_rgb(pair: tuple[np.ndarray, np.ndarray]) -> None:
    def inception(pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.dtype == torch.uint8
        return pixels.float().mean(dim=(2, 3))

    features = FidNetwork(inception, CPU, width=3).features(pair[0])
    assert features.numpy() == pytest.approx(pair[0].mean(axis=(0, 1))[None], rel=1e-6)


# Pictures ------------------------------------------------------------------------------------------------------------


def test_every_kind_of_picture_becomes_8_bit_rgb(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "rgb.png")
    Image.fromarray(photo[..., 0]).save(tmp_path / "gray.png")
    opaque = np.dstack([photo, np.full(photo.shape[:2], 255, dtype=np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    reader = Reader()
    assert np.array_equal(reader.read(tmp_path / "rgb.png"), photo)
    assert np.array_equal(reader.read(tmp_path / "gray.png"), np.repeat(photo[..., :1], 3, axis=2))
    assert np.array_equal(reader.read(tmp_path / "opaque.png"), photo)


def test_16_bits_are_rounded_to_the_nearest_level(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257 * 7 + 128, 257 * 7 + 129, 65535]], dtype=np.uint16)
    encode(Picture(np.repeat(levels[..., None], 3, axis=2)), tmp_path / "deep.png", "png", 100)
    assert Reader().read(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 7, 8, 255]


def test_a_transparent_picture_is_an_error_that_names_it(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = np.full(photo.shape[:2], 255, dtype=np.uint8)
    alpha[0, 0] = 254
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "glass.png")
    with pytest.raises(ImageError, match=r"glass\.png` is transparent"):
        Reader().read(tmp_path / "glass.png")


def test_reading_ahead_keeps_the_order_and_passes_faults_on(tmp_path: Path, photo_folder: Path) -> None:
    paths = [photo_folder / "a.png", photo_folder / "none.png", photo_folder / "sub" / "c.png"]
    first, fault, last = Reader().read_ahead(paths)
    assert isinstance(fault, ImageError)
    assert "none.png" in fault.message
    assert not isinstance(first, ImageError)
    assert not isinstance(last, ImageError)
    assert (first.shape, last.shape) == ((60, 84, 3), (50, 33, 3))
    assert list(Reader().read_ahead([])) == []


def test_a_baseline_is_pillows_filter_on_bytes(tmp_path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(tmp_path / "in.png")
    write_enlarged(tmp_path / "in.png", tmp_path / "out" / "in.png", "lanczos", 2)
    expected = Image.fromarray(photo).resize((168, 120), Image.Resampling.LANCZOS)
    assert np.array_equal(Reader().read(tmp_path / "out" / "in.png"), np.asarray(expected))


# Tables --------------------------------------------------------------------------------------------------------------


def results(**rows: list[float]) -> Results:
    return Results(tuple(rows), (METRICS["lpips"],), 4, {"lpips": rows})


def test_the_two_best_are_marked_by_the_metrics_direction_and_ties_share() -> None:
    assert marks(results(a=[0.3], b=[0.1], c=[0.2]))["lpips"] == {"a": "", "b": "*", "c": "+"}
    assert marks(results(a=[0.1], b=[0.1], c=[0.2]))["lpips"] == {"a": "*", "b": "*", "c": "+"}
    assert marks(results(a=[0.1]))["lpips"] == {"a": ""}


def test_means_count_only_what_every_row_has() -> None:
    nan = float("nan")
    counted = results(a=[0.1, nan, 0.3], b=[0.2, 0.9, 0.4])
    assert counted.means("lpips") == pytest.approx({"a": 0.2, "b": 0.3})
    assert results(a=[nan], b=[0.2]).means("lpips") == {}


def test_intervals_hold_the_mean_and_differences_are_paired() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.normal(0.3, 0.1, 40)
    rows = {"best": difficulty, "worse": difficulty + 0.01 + generator.normal(0, 0.01, 40), "same": difficulty[::-1]}
    each = uncertainties(results(**{name: list(map(float, row)) for name, row in rows.items()}))["lpips"]
    for name, (low, high) in each.intervals.items():
        assert low < rows[name].mean() < high
        # the normal approximation of a 95% interval
        assert high - low == pytest.approx(2 * 1.96 * rows[name].std(ddof=1) / 40**0.5, rel=0.1)
    assert each.tied == {"same"}


def test_draws_are_the_same_every_time_and_infinite_values_have_no_interval() -> None:
    values = np.random.default_rng(2).random((2, 9))
    assert np.array_equal(statistics.bootstrap_means(values, 50), statistics.bootstrap_means(values, 50))
    each = uncertainties(results(a=[0.1, float("inf")], b=[0.1, 0.2]))["lpips"]
    assert (each.intervals, each.tied) == ({}, frozenset())


def test_infos_come_in_the_order_of_the_papers_tables() -> None:
    opened = Opened((Metric(METRICS["niqe"], lambda sr, hq: 0.0),), FidNetwork(lambda pixels: pixels, CPU), {"x": ModelError("")})
    assert [info.name for info in opened.infos] == ["fid", "niqe"]


def test_a_value_that_is_no_number_is_a_fault_of_that_picture(pair: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ImageError, match="`niqe` has no value for it"):
        Metric(METRICS["niqe"], lambda sr, hq: float("nan"))(pair[0])
