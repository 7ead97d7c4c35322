"""LPIPS with VGG16: its values and gradients, what it says when something is missing, and how its weights are fetched."""

from __future__ import annotations

import importlib.machinery
import logging
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from srcli.cli.models import app
from srcli.errors import ModelError, UsageError
from srcli.networks import perceptual
from srcli.networks.perceptual import fetch_vgg_weights, lpips_network, vgg16, vgg_weights_path
from srcli.store.weights import sha256_of

pytest.importorskip("torchmetrics")

CPU = torch.device("cpu")
WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0 is a halving
COMPARED = (3, 8, 15, 22, 29)  # the last layer of each block, in torchvision's numbers


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's cache in a folder of its own; the path of the weights, which are not there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(logging.getLogger("srcli"), "propagate", True)
    return tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just so much of torchvision that torchmetrics can build its network from it, without the three heavy last layers."""
    import torchmetrics.functional.image.lpips as lpips

    def vgg16(weights: None) -> Any:
        return SimpleNamespace(features=vgg_features())

    module: Any = ModuleType("torchvision")
    module.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    module.models = SimpleNamespace(vgg16=vgg16)
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr(lpips, "_TORCHVISION_AVAILABLE", True)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights of VGG16 under torchvision's names; those of its last layers, which LPIPS leaves out, are zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        features = vgg_features()
        for parameter in features.parameters():
            nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else nn.init.uniform_(parameter, -0.1, 0.1)
    named = {f"features.{name}": value for name, value in features.state_dict().items()}
    for number, shape in ((0, (4096, 25088)), (3, (4096, 4096)), (6, (1000, 4096))):
        named[f"classifier.{number}.weight"] = torch.zeros(1).expand(shape)  # one number in the file
        named[f"classifier.{number}.bias"] = torch.zeros(1).expand(shape[0])
    return named


@pytest.fixture
def saved(weights: dict[str, Tensor], hub_cache: Path) -> Path:
    hub_cache.parent.mkdir(parents=True)
    torch.save(OrderedDict(weights), hub_cache)
    return hub_cache


def vgg_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def expected_distance(sr: Tensor, hq: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Equation 1 of the paper, written out; torchmetrics' file holds the weights of the layers."""
    import torchmetrics.functional.image as package

    heads = torch.load(Path(package.__file__).parent / "lpips_models" / "vgg.pth", map_location="cpu", weights_only=True)
    network = vgg_features()
    network.load_state_dict({name[9:]: value for name, value in weights.items() if name.startswith("features.")})
    shift, spread = (torch.tensor(v)[:, None, None] for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    a, b = (sr - shift) / spread, (hq - shift) / spread
    total = torch.zeros(len(sr))
    for number, layer in enumerate(network):
        a, b = layer(a), layer(b)
        if number in COMPARED:
            difference = nn.functional.normalize(a, dim=1) - nn.functional.normalize(b, dim=1)
            head = heads[f"lin{COMPARED.index(number)}.model.1.weight"]
            total += (difference.square() * head[0]).sum(1).mean((1, 2))
            if number == COMPARED[-1]:
                break
    return total


def pictures(side: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hq = torch.rand(2, 3, side, side, generator=generator) * 2 - 1
    return (hq + 0.3 * torch.randn(hq.shape, generator=generator)).clamp(-1, 1), hq


# The distance --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
def test_each_image_has_the_distance_of_the_paper(saved: Path, weights: dict[str, Tensor]) -> None:
    sr, hq = pictures()
    distance = lpips_network(CPU)(sr, hq)
    assert distance.shape == (2,)
    assert distance.min() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(distance, expected_distance(sr, hq, weights), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("stand_in")
def test_equal_images_have_no_distance_and_values_outside_are_clamped(saved: Path) -> None:
    network = lpips_network(CPU)
    sr, hq = pictures()
    assert network(hq, hq).abs().max() == 0
    assert torch.equal(network(hq + torch.where(hq > 0.9, 5.0, 0.0), hq), network(torch.where(hq > 0.9, 1.0, hq), hq))
    assert network(sr[:1], hq[:1]).shape == (1,)


@pytest.mark.usefixtures("stand_in")
def test_the_gradient_reaches_the_image_alone(saved: Path) -> None:
    network = lpips_network(CPU).train()
    sr, hq = pictures()
    sr = (0.9 * sr).requires_grad_()
    first = network(sr, hq)
    first.sum().backward()
    assert sr.grad is not None
    assert torch.isfinite(sr.grad).all()
    assert (sr.grad.abs().amax((1, 2, 3)) > 0).all()
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():  # a small step against the gradient brings the images nearer
        assert (network(sr - 1e-2 * sr.grad / sr.grad.abs().max(), hq) < first).all()
        assert torch.equal(network(sr, hq), first)  # no dropout, even after train()


@pytest.mark.usefixtures("stand_in")
def test_autocast_does_not_lower_the_precision(saved: Path) -> None:
    network = lpips_network(CPU)
    sr, hq = pictures()
    plain = network(sr, hq)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(sr, hq), plain)
        assert network(sr.bfloat16(), hq).dtype == torch.float32


@pytest.mark.usefixtures("stand_in")
def test_too_small_images_are_refused(saved: Path) -> None:
    network = lpips_network(CPU)
    assert network(*pictures(16)).shape == (2,)
    with pytest.raises(UsageError, match="at least 16 × 16 px, not 15 × 15"):
        network(*pictures(15))


@pytest.mark.usefixtures("stand_in")
def test_random_numbers_are_left_alone(saved: Path) -> None:
    before = torch.get_rng_state()
    lpips_network(CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_torchmetrics_own_lpips(saved: Path) -> None:
    pytest.importorskip("torchvision")
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    sr, hq = pictures()
    sr = (0.9 * sr).requires_grad_()  # inside: at the edge itself, what clamping does to the gradient is torch's choice
    network = lpips_network(CPU)
    distance = network(sr, hq)
    theirs = learned_perceptual_image_patch_similarity(sr, hq, net_type="vgg", reduction="none")
    torch.testing.assert_close(distance, theirs, rtol=0, atol=0)
    (gradient,), (their_gradient,) = (torch.autograd.grad(value.sum(), sr) for value in (distance, theirs))
    torch.testing.assert_close(gradient, their_gradient)
    assert gradient.abs().max() > 0


def test_vgg16_answers_at_the_same_depths_by_the_same_file(hub_cache: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ModelError, match=r"this test needs the weights of VGG16, which are missing: `") as caught:
        vgg16(CPU, "this test")
    assert "`srcli models fetch lpips-vgg`" in caught.value.hint
    weights = request.getfixturevalue("weights")
    request.getfixturevalue("saved")
    picture = pictures()[0] / 2 + 0.5
    answers = vgg16(CPU, "this test")(picture.requires_grad_())
    assert [(answer.shape[1], 32 // answer.shape[2]) for answer in answers.values()] == [
        (64, 1),
        (128, 2),
        (256, 4),
        (512, 8),
        (512, 16),
    ]
    network = vgg_features()
    network.load_state_dict({name[9:]: value for name, value in weights.items() if name.startswith("features.")})
    mean, deviation = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for depth, number in zip(answers.values(), COMPARED, strict=True):
        torch.testing.assert_close(depth, network[: number + 1]((picture - mean) / deviation))
    (gradient,) = torch.autograd.grad(sum(answer.mean() for answer in answers.values()), picture)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


# What is missing or wrong --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stand_in")
def test_missing_weights_are_named_with_the_way_to_get_them(hub_cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        lpips_network(CPU)
    assert caught.value.message == f"cannot use LPIPS: the weights of VGG16 are missing: `{hub_cache}`"
    assert "`srcli models fetch lpips-vgg`" in caught.value.hint
    assert "`--lpips 0`" in caught.value.hint
    assert "pip install" not in caught.value.hint
    assert not hub_cache.parent.exists()


def test_missing_packages_are_named_with_the_way_to_get_them(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelError) as caught:
        lpips_network(CPU)
    assert caught.value.message == "cannot use LPIPS: `torchvision` is not installed"
    assert "`pip install 'srcli[eval]'`" in caught.value.hint
    assert "`--lpips 0`" in caught.value.hint
    assert "fetch" not in caught.value.hint


def test_everything_that_is_missing_is_named_at_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchvision", "torchmetrics"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError) as caught:
        lpips_network(CPU)
    assert caught.value.message.splitlines() == [
        "cannot use LPIPS",
        "  - `torchmetrics` and `torchvision` are not installed",
        f"  - the weights of VGG16 are missing: `{hub_cache}`",
    ]
    assert caught.value.hint.index("pip install") < caught.value.hint.index("models fetch lpips-vgg")


def test_a_broken_torchvision_is_told(saved: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(weights: None) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(sys.modules["torchvision"].models, "vgg16", broken)
    with pytest.raises(ModelError, match=r"cannot be used: operator torchvision::nms does not exist\n") as caught:
        lpips_network(CPU)
    assert "--lpips 0" in caught.value.hint


class Opens:
    """A pickle of it creates a file when it is loaded unguarded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


@pytest.mark.usefixtures("stand_in")
def test_a_damaged_file_is_named_and_runs_nothing(saved: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(ModelError) as caught:
            lpips_network(CPU)
        assert str(saved) in caught.value.message
        assert "`srcli models fetch lpips-vgg` replaces the file" in caught.value.hint
        return caught.value.message

    saved.write_bytes(saved.read_bytes()[:100_000])
    assert message().endswith("is damaged or not a torch checkpoint")
    saved.write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    message()
    assert not (tmp_path / "ran").exists()
    torch.save({**weights, "features.28.weight": torch.zeros(2)}, saved)
    assert message().endswith("holds no weights of VGG16: `features.28.weight` is missing or of another shape")
    torch.save({}, saved)
    assert "`features.0.weight` is missing" in message()


@pytest.mark.usefixtures("stand_in")
def test_a_file_with_another_sum_is_used_with_a_warning(
    saved: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lpips_network(CPU)
    assert f"`{saved}` is not torchvision's file: LPIPS is another measure with it" in caplog.messages
    caplog.clear()
    monkeypatch.setattr(perceptual, "_VGG_SHA256", sha256_of(saved))
    lpips_network(CPU)
    assert caplog.messages == []


# Fetching ------------------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 2000


class Mirror(HTTPServer):
    """Serves `CONTENT`; `fault` is "404", "cut" (half of it, with the whole length announced) or "silent"."""

    fault = ""
    requests = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.fault == "404":
            self.send_error(404)
            return
        if self.server.fault == "silent":
            threading.Event().wait(1.0)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.server.fault == "cut" else CONTENT)

    def log_message(self, *_: Any) -> None:
        """Not on the screen."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server on this machine that holds the right file, as far as the sum goes."""
    file = tmp_path / "content"
    file.write_bytes(CONTENT)
    monkeypatch.setattr(perceptual, "_VGG_SHA256", sha256_of(file))
    with Mirror(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("SRCLI_LPIPS_URL", f"http://127.0.0.1:{server.server_port}/vgg.pth")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch_fails(path: Path, match: str) -> ModelError:
    """The fetch's error; afterwards nothing is left of it."""
    with pytest.raises(ModelError, match=match) as caught:
        fetch_vgg_weights()
    assert list(path.parent.glob("*")) == []
    return caught.value


def test_fetch_puts_the_file_into_the_cache_and_tells_size_and_licence_first(
    mirror: Mirror, hub_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "srcli"):
        result = CliRunner().invoke(app, ["fetch", "lpips-vgg"], catch_exceptions=False)
    assert result.stdout == f"{hub_cache}\n"
    assert hub_cache.read_bytes() == CONTENT
    assert [path.name for path in hub_cache.parent.iterdir()] == [hub_cache.name]
    assert vgg_weights_path() == hub_cache
    assert "528 MiB" in caplog.messages[0]
    assert "BSD-3-Clause" in caplog.messages[0]


def test_a_right_file_is_not_fetched_again_and_a_wrong_one_is_replaced(mirror: Mirror, hub_cache: Path) -> None:
    hub_cache.parent.mkdir(parents=True)
    hub_cache.write_bytes(b"wrong")
    assert fetch_vgg_weights() == hub_cache
    assert hub_cache.read_bytes() == CONTENT
    assert fetch_vgg_weights() == hub_cache
    assert mirror.requests == 1


def test_a_wrong_sum_is_an_error_and_leaves_no_file(mirror: Mirror, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_VGG_SHA256", "0" * 64)
    assert str(hub_cache) in fetch_fails(hub_cache, "sent another file, or not all of it: its SHA-256 is not `0000").hint


def test_a_cut_connection_is_an_error_and_leaves_no_file(mirror: Mirror, hub_cache: Path) -> None:
    mirror.fault = "cut"
    assert "try again" in fetch_fails(hub_cache, "sent another file, or not all of it").hint


def test_a_missing_file_on_the_server_is_told(mirror: Mirror, hub_cache: Path) -> None:
    mirror.fault = "404"
    assert "SRCLI_LPIPS_URL" in fetch_fails(hub_cache, "the server answers 404 Not Found\n").hint


def test_a_silent_server_is_given_up(mirror: Mirror, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.fault = "silent"
    monkeypatch.setattr(perceptual, "_TIMEOUT_S", 0.1)
    fetch_fails(hub_cache, r"cannot download `http://127.*timed out")


def test_no_network_is_told(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRCLI_LPIPS_URL", "http://127.0.0.1:1/vgg.pth")
    fault = fetch_fails(hub_cache, "cannot download `http://127.0.0.1:1/vgg.pth`: .*refused")
    assert "check the network" in fault.hint
    assert str(hub_cache) in fault.hint
    monkeypatch.setenv("SRCLI_LPIPS_URL", "vgg.pth")
    fetch_fails(hub_cache, "`vgg.pth`, in `SRCLI_LPIPS_URL`, is no address")


def test_a_failed_fetch_keeps_the_file_that_was_there(mirror: Mirror, hub_cache: Path) -> None:
    hub_cache.parent.mkdir(parents=True)
    hub_cache.write_bytes(b"another")
    mirror.fault = "cut"
    with pytest.raises(ModelError):
        fetch_vgg_weights()
    assert [path.read_bytes() for path in hub_cache.parent.iterdir()] == [b"another"]


def test_a_place_that_cannot_be_written_is_told(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "torch").write_text("a file")
    with pytest.raises(ModelError, match=r"cannot write `.*vgg16-397923af.pth`: Not a directory") as caught:
        fetch_vgg_weights()
    assert "TORCH_HOME" in caught.value.hint


def test_an_unknown_name_keeps_its_error() -> None:
    result = CliRunner().invoke(app, ["fetch", "nonsense"])
    assert isinstance(result.exception, ModelError)
    assert result.exception.message.startswith("unknown model `nonsense`")
