"""The convolutions at full resolution behind a UNet that works on patches."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import srcli
from tiny_model import WIDTH, make_base
from torch import Tensor
from training_case import make_config, make_photos

from srcli.errors import ModelError
from srcli.families.pisasr import TARGETS
from srcli.networks.adapters import AdapterInfo, merge
from srcli.networks.attached import attach, extract
from srcli.networks.backbone import PatchAutoencoder, load_passes, load_unet
from srcli.networks.saved_adapters import load_adapter
from srcli.networks.tail import PixelTail
from srcli.store.layout import lacking_files, needed_files
from srcli.training.loop import train

PATCHES = PatchAutoencoder()
PROMPT = torch.randn(1, 2, WIDTH, generator=torch.Generator().manual_seed(1))


def make_tail(*, works: bool = True, seed: int = 0) -> PixelTail:
    torch.manual_seed(seed)
    tail = PixelTail()
    if works:
        for last in (tail.conv4, tail.detail4):
            torch.nn.init.normal_(last.weight, 0, 0.1)
    return tail.eval()


def changed(tail: PixelTail, before: Tensor, after: Tensor) -> Tensor:
    """What a tail adds to pictures, when the UNet made `after` of `before`: (N, 3, H, W)."""
    latent = PATCHES.encode(before)
    answer = latent - PATCHES.encode(after)
    with torch.no_grad():
        return PATCHES.decode(latent - tail(latent, answer)) - after


def pictures(height: int = 64, width: int = 64, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(1, 3, height, width, generator=generator) * 2 - 1 for _ in range(2))
    return before, after


def base_with_tail(folder: Path, *, works: bool = True) -> Path:
    base = make_base(folder)
    make_tail(works=works).save(base / "tail")
    return base


def test_until_an_adapter_changes_it_a_tail_does_nothing() -> None:
    latent, answer = torch.randn(2, 48, 5, 7), torch.randn(2, 48, 5, 7)
    assert torch.equal(make_tail(works=False)(latent, answer), answer)


@pytest.mark.parametrize(("down", "right"), [(1, 0), (0, 3), (2, 1)])
def test_what_it_does_knows_nothing_of_the_patches(down: int, right: int) -> None:
    tail = make_tail()
    before, after = pictures(96, 96)
    here = changed(tail, before, after)
    moved = changed(tail, before.roll((down, right), (2, 3)), after.roll((down, right), (2, 3)))
    inner = slice(24, 72)  # off the borders, which a roll brings inside
    expected = here.roll((down, right), (2, 3))[..., inner, inner]
    assert expected.abs().mean() > 1e-3
    torch.testing.assert_close(moved[..., inner, inner], expected, atol=2e-6, rtol=0)


def test_what_was_and_is_flat_stays_as_it_is_at_borders_too() -> None:
    for level in (-1.0, 0.3):
        plain = torch.full((1, 3, 32, 32), level)
        assert changed(make_tail(), plain, plain).abs().max() < 1e-6


def test_it_adds_no_colour_and_sees_no_brightness() -> None:
    tail = make_tail()
    before, after = (picture / 4 for picture in pictures())
    change = changed(tail, before, after)
    assert (change - change[:, :1]).abs().max() < 1e-6
    torch.testing.assert_close(changed(tail, before + 0.5, after + 0.5), change, atol=2e-6, rtol=0)


@pytest.mark.parametrize("return_dict", [True, False])
def test_both_ways_to_run_a_unet_end_in_its_tail(return_dict: bool, tmp_path: Path) -> None:
    base = base_with_tail(tmp_path)
    latent = torch.randn(2, 48, 8, 12)
    with torch.no_grad():
        answers = []
        for unet in (load_unet(make_base(tmp_path / "plain")), load_unet(base)):
            told = unet(sample=latent, timestep=1, encoder_hidden_states=PROMPT.expand(2, -1, -1), return_dict=return_dict)
            answers.append(told.sample if return_dict else told[0])
        without, with_tail = answers
        fixed = load_passes(base, {"all": []}, torch.float32, PROMPT, [1])["all"](latent, 1)
    assert (with_tail - without).abs().mean() > 1e-3
    torch.testing.assert_close(with_tail, load_unet(base).tail(latent, without))
    torch.testing.assert_close(fixed, with_tail, atol=1e-5, rtol=0)


def test_an_adapter_trains_the_tail_and_is_merged_into_it(tmp_path: Path) -> None:
    base = base_with_tail(tmp_path, works=False)
    unet = load_unet(base)
    with torch.no_grad():
        for parameter in attach(unet, "pixel", 2, 2, TARGETS):
            parameter.normal_(0, 0.1)
    adapter = extract(unet, "pixel", AdapterInfo(2, 2))
    adapted = {module for module in adapter.modules if module.startswith("tail.")}
    assert adapted == {"tail.conv1", "tail.conv2", "tail.conv3", "tail.conv4"}  # the rest is for who asks for it
    latent = torch.randn(1, 48, 8, 8)
    with torch.no_grad():
        expected = unet(latent, 1, encoder_hidden_states=PROMPT).sample
        merged = load_unet(base)
        merge(merged, [adapter])
        torch.testing.assert_close(merged(latent, 1, encoder_hidden_states=PROMPT).sample, expected, atol=1e-4, rtol=0)
    assert merged.tail.conv4.weight.abs().max() > 0


def test_an_adapter_of_a_base_without_a_tail_learns_on_with_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = make_photos(tmp_path / "photos")
    base = make_base(tmp_path / "base")
    first = make_config("pixel", photos, tmp_path / "first")
    train(first, base)
    kept = load_adapter(tmp_path / "first" / "pixel" / "adapter_model.safetensors", "pixel")
    make_tail(works=False).save(base / "tail")

    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "steps": 1}
    with caplog.at_level(logging.WARNING, "srcli"):
        train(make_config("pixel", photos, tmp_path / "still", still, start_from=first.output), base)
    assert "4 layers" in caplog.text
    assert "lacks, tail.conv1, tail.conv2, tail.conv3, tail.conv4" in caplog.text
    again = load_adapter(tmp_path / "still" / "pixel" / "adapter_model.safetensors", "pixel")
    for name, tensor in kept.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor)
    assert again.tensors["tail.conv4.lora_B.weight"].abs().max() < 1e-9

    train(make_config("pixel", photos, tmp_path / "on", {"steps": 3}, start_from=first.output), base)
    on = load_adapter(tmp_path / "on" / "pixel" / "adapter_model.safetensors", "pixel")
    assert on.tensors["tail.conv4.lora_B.weight"].abs().max() > 1e-3


def test_a_run_does_not_go_on_with_a_base_that_got_a_tail_since(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos")
    base = make_base(tmp_path / "base")
    train(make_config("pixel", photos, tmp_path / "out"), base)
    make_tail(works=False).save(base / "tail")
    with pytest.raises(ModelError, match="the base is not what it was") as caught:
        train(make_config("pixel", photos, tmp_path / "out", resume=True), base)
    assert "--start-from" in (caught.value.hint or "")


def test_kernels_of_even_sides_are_refused(tmp_path: Path) -> None:
    base = base_with_tail(tmp_path)
    settings = json.loads((base / "tail" / "config.json").read_text())
    (base / "tail" / "config.json").write_text(json.dumps(settings | {"kernels": [5, 4, 3, 5]}))
    with pytest.raises(ModelError, match=r"no usable `tail`.*odd"):
        load_unet(base)


def test_the_second_half_builds_on_the_first() -> None:
    both, first, second = (make_tail() for _ in range(3))
    torch.nn.init.zeros_(first.detail4.weight)
    torch.nn.init.zeros_(second.conv4.weight)
    before, after = (picture / 4 for picture in pictures())
    halfway = changed(first, before, after)
    whole = changed(both, before, after)
    alone = changed(second, before, after)
    assert halfway.abs().mean() > 1e-4
    assert (whole - halfway).abs().mean() > 1e-4
    assert (whole - halfway - alone).abs().mean() > 1e-5  # it saw what the first had made


@pytest.mark.parametrize("idle", [(), ("conv4",), ("detail4",), ("conv4", "detail4")])
def test_halves_that_do_nothing_need_not_be_computed(idle: tuple[str, ...]) -> None:
    whole, settled = make_tail(), make_tail()
    for name in idle:
        for tail in (whole, settled):
            torch.nn.init.zeros_(tail.get_submodule(name).weight)
    settled.settle()
    before, after = pictures()
    assert torch.equal(changed(settled, before, after), changed(whole, before, after))


def test_a_tail_for_other_patches_is_refused(tmp_path: Path) -> None:
    base = base_with_tail(tmp_path)
    settings = json.loads((base / "vae" / "config.json").read_text())
    (base / "vae" / "config.json").write_text(json.dumps(settings | {"scaling_factor": 1.0}))
    with pytest.raises(ModelError, match="patches of 4 px, scaled by 2"):
        load_unet(base)


def test_a_damaged_tail_is_named(tmp_path: Path) -> None:
    base = base_with_tail(tmp_path)
    (base / "tail" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(ModelError, match="no usable `tail`"):
        load_unet(base)


def test_a_declared_tail_is_fetched_and_missed(tmp_path: Path) -> None:
    index: dict[str, Any] = {"unet": ["diffusers", "UNet2DConditionModel"], "tail": ["srcli", "PixelTail"]}
    base = base_with_tail(tmp_path)
    (base / "model_index.json").write_text(json.dumps(index))
    names = [path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()]
    assert {"tail/config.json", "tail/diffusion_pytorch_model.safetensors"} < set(needed_files(names))
    assert not lacking_files(base)
    (base / "tail" / "diffusion_pytorch_model.safetensors").unlink()
    assert lacking_files(base) == ["tail/*.safetensors"]


def test_a_rows_targets_hold_for_its_own_base_alone(tmp_path: Path) -> None:
    rows = tmp_path / "models.toml"
    rows.write_text(
        """[models.own]
family = "pisasr"
native_scale = 4
base = { embedded = "tiny" }
training.semantic = { targets = 'tail\\.detail\\d' }
"""
    )
    shown = ("train-semantic", "--show-recipe", "--model", "own", "--models-file", rows)
    own = srcli(*shown)
    assert 'targets = "tail' in own.stdout
    other = srcli(*shown, "--base", make_base(tmp_path / "base"))
    assert other.returncode == 0, other.stderr
    assert 'targets = "(conv_in|' in other.stdout
