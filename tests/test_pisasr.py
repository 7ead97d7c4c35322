from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import Parity, settings_of

from srcli.engine.restore import Engine, Limits
from srcli.errors import ModelError
from srcli.families.pisasr import TARGETS
from srcli.families.pisasr.reference import convert, read_reference
from srcli.families.pisasr.restorer import PisaRestorer, pass_weights
from srcli.images.canvas import Canvas
from srcli.networks.adapters import Adapter, AdapterInfo, merge
from srcli.networks.attached import attach, extract
from srcli.networks.backbone import PatchAutoencoder, load_autoencoder, load_unet, prompt_embedding
from srcli.networks.saved_adapters import load_adapter, save_adapter
from srcli.store.adapter_files import ADAPTER_FILE
from srcli.store.weights import load_pickle

DATA = Path(__file__).parent / "data" / "pisa"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "parity" / "open" / "pisa"
CASES = [case["name"] for case in json.loads((DATA / "cases.json").read_text())["cases"]]


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Parity:
    return Parity(DATA, tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_within_the_reference_tolerance(parity: Parity, name: str) -> None:
    case = next(case for case in parity.cases if case["name"] == name)
    errors = parity.measure(case)
    assert errors.within(case["tolerance"]), errors


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the complete parity data are not here")
def test_every_recorded_case_is_within_tolerance(tmp_path: Path) -> None:
    complete = Parity(SHARED, tmp_path)
    outside = {}
    for case in complete.cases:
        errors = complete.measure(case)
        if not errors.within(case["tolerance"]):
            outside[case["name"]] = errors
    assert len(complete.cases) == 20
    assert not outside


# --- passes ---


def answer(
    parity: Parity, scales: tuple[float, float], latent: torch.Tensor, dtype: torch.dtype = torch.float32, *, exact: bool = False
) -> torch.Tensor:
    """The prediction: the weighted sum of the passes."""
    restorer = parity.restorer(*scales, dtype)
    passes = mixed(restorer, scales).items()
    return sum((weight * restorer.predict_pass(key, latent, exact=exact) for key, weight in passes), torch.zeros_like(latent))


@pytest.mark.parametrize(
    ("scales", "passes"),
    [
        ((1, 1), {"both"}),
        ((0.7, 0.7), {"both"}),
        ((1, 0), {"pixel"}),
        ((1.5, 0), {"pixel"}),
        ((1, 0.5), {"pixel", "both"}),
        ((0, 1), {"pixel", "both"}),
        ((0, 0), set()),
    ],
)
def test_only_the_passes_that_the_scales_need_are_run(parity: Parity, scales: tuple[float, float], passes: set[str]) -> None:
    restorer = parity.restorer(*scales)
    calls: list[int] = []
    for names, _ in mixed(restorer, scales):
        restorer._unets[names].register_forward_hook(lambda *args: calls.append(1))
    Engine(restorer, Limits(64, 16, 2, None), settings_of(*scales)).restore([torch.zeros(3, 64, 64)])
    assert len(calls) == len(passes) == len(pass_weights(*scales))


def mixed(restorer: PisaRestorer, scales: tuple[float, float]) -> Mapping[tuple[tuple[str, ...], int], float]:
    weights: Any = restorer.mix(settings_of(*scales), Canvas(np.zeros((1, 1, 3), np.uint8))).weights
    return weights


@pytest.mark.parametrize(("pixel", "semantic"), [(1.0, 1.0), (0.3, 1.4), (1.2, 0.0), (0.0, 0.8), (-0.5, 0.5), (0.0, 0.0)])
def test_the_sum_of_passes_is_equation_8(parity: Parity, pixel: float, semantic: float) -> None:
    latent = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    eps_pix, eps_pisa = answer(parity, (1, 0), latent), answer(parity, (1, 1), latent)
    expected = pixel * eps_pix + semantic * (eps_pisa - eps_pix)
    assert torch.allclose(answer(parity, (pixel, semantic), latent), expected, atol=2e-5)


def test_zero_scales_give_the_autoencoder_alone(parity: Parity) -> None:
    latent = torch.randn(1, 4, 8, 8)
    assert torch.equal(parity.restorer(0, 0).apply(latent, answer(parity, (0, 0), latent)), latent)


def test_without_a_semantic_adapter_only_the_pixel_pass_counts() -> None:
    assert pass_weights(0.8, 1.3, has_semantic=False) == {("pixel",): 0.8}
    assert pass_weights(0.0, 1.3, has_semantic=False) == {}


@pytest.mark.parametrize("size", [(4, 4), (4, 200), (1, 1), (13, 30), (512, 3200), (1032, 520)])
def test_a_real_network_takes_every_size(parity: Parity, size: tuple[int, int]) -> None:
    engine = Engine(parity.restorer(1, 1), Limits(64, 16, 2, 1 << 22), settings_of(1, 1))
    (result,) = engine.restore([torch.zeros(3, *size)])
    assert result.shape == (3, *size)
    assert torch.isfinite(result).all()


def _waves() -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 20, 256), torch.linspace(0, 30, 320), indexing="ij")
    return torch.stack([y.sin(), x.cos(), (x + y).sin()]) * 0.8


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of pictures in [-1, 1], in dB."""
    return float(-10 * torch.log10(((a - b) / 2).square().mean()))


SMALL = 24 * 24
"""Cells of an autoencoder's tile that cut `_waves` into several."""


def _limits(restorer: PisaRestorer, cells: int | None, held_bytes: int = 0) -> Limits:
    most = max(part.cell_bytes for part in (*restorer.encoder(), *restorer.decoder))
    return Limits(96, 32, 1, None if cells is None else cells * most, 0, held_bytes)


def test_tiles_that_go_side_by_side_give_what_the_whole_picture_gives(parity: Parity) -> None:
    restorer = parity.restorer(1, 1)
    (whole,) = Engine(restorer, _limits(restorer, None), settings_of(1, 1)).restore([_waves()])
    (tiled,) = Engine(restorer, _limits(restorer, SMALL, 1 << 40), settings_of(1, 1)).restore([_waves()])
    assert not torch.equal(whole, tiled)
    assert _psnr(whole, tiled) > 60


def test_tiles_of_a_picture_too_large_for_that_agree_where_they_meet(parity: Parity) -> None:
    """Their norms are measured on crops: the picture as a whole may differ a little, but no border may show."""
    restorer = parity.restorer(0, 0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 640), torch.linspace(-1, 1, 512), indexing="ij")
    gradient = torch.stack([x, y, (x + y) / 2]) * 0.7
    engine = Engine(restorer, _limits(restorer, SMALL, 1 << 21), settings_of(0, 0))
    (tiled,) = engine.restore([gradient])
    (whole,) = Engine(restorer, _limits(restorer, None), settings_of(0, 0)).restore([gradient])
    assert _psnr(whole, tiled) < 60, "this is about pictures whose tiles do not all fit side by side"
    for axis in (1, 2):
        steps = tiled.diff(dim=axis).abs().mean(dim=(0, 3 - axis))
        ours, theirs = steps.max() / steps.median(), whole.diff(dim=axis).abs().mean(dim=(0, 3 - axis))
        assert ours < 1.5 * theirs.max() / theirs.median()


def test_half_precision_is_near_and_exact_calls_equal_float32(parity: Parity) -> None:
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = answer(parity, (1, 1), latent)
    half = answer(parity, (1, 1), latent, torch.bfloat16)
    assert half.dtype == torch.float32
    near = (half - exact).abs().mean() / exact.abs().mean()
    assert 0 < near < 0.05
    redone = (answer(parity, (1, 1), latent, torch.bfloat16, exact=True) - exact).abs().mean() / exact.abs().mean()
    assert redone < 0.6 * near
    restorer = parity.restorer(1, 1, torch.bfloat16)
    (unet,) = (restorer._unets[names] for names, _ in mixed(restorer, (1, 1)))
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}


# --- adapters ---


@pytest.fixture(scope="module")
def imported() -> list[Adapter]:
    return read_reference(load_pickle(DATA / "pisa_sr.pkl"), DATA / "pisa_sr.pkl", "base", "MIT")


def test_saved_adapters_come_back_with_their_metadata(imported: list[Adapter], tmp_path: Path) -> None:
    path = save_adapter(imported[0], tmp_path / "pixel")
    back = load_adapter(path, "pixel")
    assert back.info == AdapterInfo(4, 8.0, "base", "pixel", 0, "MIT")
    assert back.tensors.keys() == imported[0].tensors.keys()
    assert all(torch.equal(back.tensors[key], value) for key, value in imported[0].tensors.items())


def test_whoever_may_read_other_files_of_the_folder_may_read_a_saved_adapter(imported: list[Adapter], tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(b"")
    assert save_adapter(imported[0], tmp_path).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_peft_itself_loads_the_saved_folder_to_the_same_effect(imported: list[Adapter], tmp_path: Path) -> None:
    from peft import PeftModel

    save_adapter(imported[0], tmp_path / "pixel")
    wrapped = PeftModel.from_pretrained(load_unet(DATA / "base"), str(tmp_path / "pixel"))
    ours = load_unet(DATA / "base")
    merge(ours, imported[:1])
    latent, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    with torch.no_grad():
        theirs = wrapped(latent, 1, encoder_hidden_states=text).sample
        assert torch.allclose(ours(latent, 1, encoder_hidden_states=text).sample, theirs, atol=1e-4)
        plain = load_unet(DATA / "base")(latent, 1, encoder_hidden_states=text).sample
        assert not torch.allclose(plain, theirs, atol=1e-2)


def test_a_merged_weight_is_the_formula(imported: list[Adapter]) -> None:
    name = "down_blocks.2.resnets.0.conv1"
    before = load_unet(DATA / "base").get_submodule(name).weight.clone()
    unet = load_unet(DATA / "base")
    merge(unet, imported)
    expected = before.clone()
    for adapter in imported:
        down, up = (adapter.tensors[f"{name}.lora_{half}.weight"] for half in "AB")
        expected += 8 / 4 * torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    assert torch.allclose(unet.get_submodule(name).weight, expected, atol=1e-6)
    assert not any("lora" in key for key, _ in unet.named_parameters())


def test_attached_layers_are_those_of_the_reference(imported: list[Adapter]) -> None:
    unet = load_unet(DATA / "base")
    parameters = attach(unet, "pixel", 4, 8, TARGETS)
    assert extract(unet, "pixel", imported[0].info).modules == imported[0].modules
    assert len(parameters) == 2 * len(imported[0].modules)
    assert sum(p.requires_grad for p in unet.parameters()) == len(parameters)


def test_a_fresh_adapter_changes_nothing() -> None:
    unet = load_unet(DATA / "base")
    latent, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        before = unet(latent, 1, encoder_hidden_states=text).sample
        attach(unet, "pixel", 4, 8, TARGETS)
        assert torch.equal(unet(latent, 1, encoder_hidden_states=text).sample, before)


def test_an_adapter_for_another_base_names_every_layer(imported: list[Adapter]) -> None:
    tensors = dict(imported[0].tensors)
    tensors["conv_in.lora_B.weight"] = torch.zeros(99, 4, 1, 1)
    tensors["nowhere.lora_A.weight"] = tensors["nowhere.lora_B.weight"] = torch.zeros(4, 4)
    del tensors["conv_out.lora_A.weight"]
    with pytest.raises(ModelError) as caught:
        merge(load_unet(DATA / "base"), [Adapter("pixel", tensors, imported[0].info)])
    for name in ("conv_in", "nowhere", "conv_out"):
        assert f"`{name}`" in caught.value.message


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict_unet": {}}, {"state_dict_unet": {}, "lora_rank_unet_pix": 4, "lora_rank_unet_sem": 4}, {"x": 1}],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: dict[str, object], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pkl")
    with pytest.raises(ModelError):
        convert([tmp_path / "x.pkl"], [DATA / "base" / "unet" / "config.json"], tmp_path / "out", "b", "l")
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_rank_is_refused(imported: list[Adapter], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(imported[0].tensors, tmp_path / ADAPTER_FILE)
    with pytest.raises(ModelError, match="rank and alpha"):
        load_adapter(tmp_path / ADAPTER_FILE, "pixel")


# --- backbone ---


def test_patches_are_lossless() -> None:
    autoencoder = PatchAutoencoder(4, 2.0)
    picture = torch.rand(2, 3, 16, 24) * 2 - 1
    latent = autoencoder.encode(picture)
    assert latent.shape == (2, 48, 4, 6)
    assert torch.equal(autoencoder.decode(latent), picture)


def test_encoding_is_the_mode_and_so_the_same_each_time() -> None:
    autoencoder = load_autoencoder(DATA / "base")
    assert (autoencoder.factor, autoencoder.channels) == (8, 4)
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(autoencoder.encode(picture), autoencoder.encode(picture))


def test_the_empty_prompt_is_encoded_as_the_reference_does() -> None:
    recorded = np.load(DATA / "runs" / "input_b.npz")["prompt_embeds"]
    ours = prompt_embedding(DATA / "base", "").numpy()
    assert np.abs(ours - recorded).max() < 1e-4


@pytest.fixture
def broken_base(tmp_path: Path) -> Path:
    shutil.copytree(DATA / "base", tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_damaged_part_is_named(broken_base: Path, part: str) -> None:
    (broken_base / part / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ModelError, match=part):
        (load_unet if part == "unet" else load_autoencoder)(broken_base)


def test_a_missing_text_encoder_is_named(broken_base: Path) -> None:
    (broken_base / "text_encoder" / "config.json").unlink()
    with pytest.raises(ModelError, match="text encoder"):
        prompt_embedding(broken_base, "")
