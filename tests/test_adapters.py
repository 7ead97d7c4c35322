"""Adapters on networks of all kinds, none of them diffusers'."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError, UsageError
from srcli.networks.adapters import Adapter, AdapterInfo, merge
from srcli.networks.attached import attach, attach_frozen, extract, fill, use_adapters
from srcli.networks.lora import LoraLayer
from srcli.networks.merged import merge_where_it_pays
from srcli.networks.saved_adapters import load_adapter, save_adapter
from srcli.store.adapter_files import ADAPTER_FILE

PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGET = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
PLAIN = ["conv_in", "dilated", "same", "tokens.fc1", "tokens.unused_call", "tokens.mix.0"]
SPECIAL = ["depthwise", "grouped", "mirrored", "up"]
RANKS = {"conv_in": 1, "depthwise": 2, "grouped": 3, "tokens.fc1": 4, "up": 2, "same": 0}
FULL = r"(norm\.bias|tokens\.table|same\.(weight|bias))"


class Tokens(nn.Module):
    """A parameter of its own, a layer whose weight is used without a call of it, and one that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8))
        self.fc1, self.unused_call = nn.Linear(8, 8), nn.Linear(8, 8)
        shared = nn.Linear(8, 8)
        self.mix = nn.Sequential(shared, nn.Tanh(), shared)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.fc1(x + self.table))
        return self.mix(functional.linear(x, self.unused_call.weight, self.unused_call.bias))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(8, 8, 1, padding="same")
        self.norm = nn.GroupNorm(2, 8)
        self.tokens = Tokens()
        self.up = nn.ConvTranspose2d(8, 3, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in (self.dilated, self.depthwise, self.grouped, self.mirrored, self.same):
            x = x + torch.tanh(layer(x))
        tokens = self.tokens(self.norm(x).flatten(2).transpose(1, 2))
        return self.up(x + tokens.transpose(1, 2).view_as(x))


def make_network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def train(network: nn.Module, parameters: list[nn.Parameter]) -> None:
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    for _ in range(4):
        optimiser.zero_grad()
        functional.mse_loss(network(PICTURES), TARGET).backward()
        optimiser.step()


def trained(
    name: str, rank: int | dict[str, int], info: AdapterInfo, full: str = "", targets: str = ".*"
) -> tuple[Network, Adapter]:
    network = make_network()
    torch.manual_seed(len(name))
    train(network, attach(network, name, rank, info.alpha, targets, full))
    return network, extract(network, name, info)


@torch.no_grad()
def answer(network: nn.Module) -> Tensor:
    return network(PICTURES)


def merged(*adapters: Adapter) -> Network:
    network = make_network()
    merge(network, adapters)
    return network


def assert_alike(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# --- one adapter ---


@pytest.mark.parametrize(
    ("rank", "info", "full"),
    [
        (2, AdapterInfo(2, 3.0), ""),
        (2, AdapterInfo(2, 3.0), FULL),
        (RANKS, AdapterInfo(4, 2.0), ""),
        (RANKS, AdapterInfo(4, 2.0), FULL),
        ({}, AdapterInfo(0, 1.0), FULL),
    ],
)
def test_what_was_trained_is_what_is_merged(rank: int | dict[str, int], info: AdapterInfo, full: str, tmp_path: Path) -> None:
    network, adapter = trained("pixel", rank, info, full)
    back = load_adapter(save_adapter(adapter, tmp_path), "pixel")
    assert back.info == info
    assert back.ranks == {name: rank if isinstance(rank, int) else rank[name] for name in back.modules}
    assert set(back.full) == ({"norm.bias", "tokens.table", "same.weight", "same.bias"} if full else set())
    plain = merged(back)
    assert (answer(network) - answer(make_network())).abs().mean() > 1e-2
    assert_alike(answer(plain), answer(network))
    assert [(name, type(module)) for name, module in plain.named_modules()] == [
        (name, type(module)) for name, module in make_network().named_modules()
    ]


def test_all_layers_with_a_matrix_or_kernel_can_be_adapted() -> None:
    network, adapter = trained("pixel", 2, AdapterInfo(2, 2))
    assert adapter.modules == sorted(PLAIN + SPECIAL)
    assert {name for name, layer in network.named_modules() if isinstance(layer, LoraLayer) and layer.merged} == set(SPECIAL)
    assert all(adapter.tensors[f"{name}.lora_B.weight"].any() for name in adapter.modules)


def test_a_fresh_adapter_changes_nothing_and_alone_wants_gradients() -> None:
    network = make_network()
    parameters = attach(network, "pixel", 2, 2, ".*", FULL)
    assert_alike(answer(network), answer(make_network()))
    assert [parameter for parameter in network.parameters() if parameter.requires_grad] == parameters
    assert len(parameters) == 2 * (len(PLAIN + SPECIAL) - 1) + 4  # the layer whose weight is trained in full has no LoRA


def test_layers_that_compute_merged_answer_as_separate_ones() -> None:
    network, _ = trained("pixel", 4, AdapterInfo(4, 4))
    separate = answer(network)
    assert merge_where_it_pays(network, "pixel") == len(PLAIN)
    assert_alike(answer(network), separate)


def test_an_attached_layer_shows_the_attributes_of_its_own() -> None:
    network = make_network()
    attach(network, "pixel", 2, 2, "conv_in|up")
    assert network.conv_in.kernel_size == (3, 3)
    assert network.up.bias is network.up.base_layer.bias
    with pytest.raises(AttributeError, match="nothing"):
        _ = network.up.nothing


# --- as peft does it ---


def test_first_weights_and_merged_ones_are_those_of_peft() -> None:
    ours, theirs = make_network(), make_network()
    targets = "|".join(name for name in PLAIN if name != "dilated")  # which peft computes without the dilation
    for seed, network in ((3, ours), (3, theirs)):
        torch.manual_seed(seed)
        if network is ours:
            attach(network, "pixel", 4, 8, targets)
        else:
            inject_adapter_in_model(
                LoraConfig(r=4, lora_alpha=8, init_lora_weights="gaussian", target_modules=targets), network, "pixel"
            )
        network.after = torch.rand(1)
    assert torch.equal(ours.after, theirs.after)
    adapter = extract(ours, "pixel", AdapterInfo(4, 8))
    chance = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name in adapter.modules:
            layer = theirs.get_submodule(name)
            assert torch.equal(layer.lora_A["pixel"].weight, adapter.tensors[f"{name}.lora_A.weight"])
            layer.lora_B["pixel"].weight.copy_(adapter.tensors[f"{name}.lora_B.weight"].normal_(generator=chance))
            layer.merge()
    plain = merged(adapter)
    for name in adapter.modules:
        assert torch.equal(plain.get_submodule(name).weight, theirs.get_submodule(name).base_layer.weight)


def test_grouped_layers_are_merged_which_peft_refuses() -> None:
    theirs, targets = make_network(), "depthwise|grouped"
    with pytest.warns(UserWarning, match="groups > 1"):
        inject_adapter_in_model(LoraConfig(r=8, target_modules=targets), theirs, "pixel")
    with pytest.raises(NotImplementedError):
        theirs.grouped.merge()
    network, adapter = trained("pixel", 2, AdapterInfo(2, 2), targets=targets)
    assert adapter.modules == ["depthwise", "grouped"]
    assert_alike(answer(merged(adapter)), answer(network))
    assert (answer(network) - answer(make_network())).abs().max() > 1e-3


def test_peft_loads_ranks_for_each_layer_and_whole_tensors(tmp_path: Path) -> None:
    _, adapter = trained("pixel", {"conv_in": 1, "tokens.fc1": 4}, AdapterInfo(4, 2.0), r"(norm|same)\..*")
    save_adapter(adapter, tmp_path)
    theirs = PeftModel.from_pretrained(make_network(), str(tmp_path))
    assert_alike(answer(theirs), answer(merged(adapter)))


def test_the_same_adapter_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from pathlib import Path;"
        "from srcli.networks.adapters import Adapter, AdapterInfo; from srcli.networks.saved_adapters import save_adapter;"
        "keys = [f'{layer}.lora_{half}.weight' for layer in 'stuvw' for half in 'AB'] + ['b.bias', 'c.weight'];"
        "info = AdapterInfo(2, 4.0, 'base é', 'pixel', 7, 'MIT');"
        "save_adapter(Adapter('pixel', {key: torch.ones(2, 2) for key in set(keys)}, info), Path(sys.argv[1]))"
    )
    there, here = tmp_path / "there", tmp_path / "here"
    subprocess.run([sys.executable, "-c", program, str(there)], env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    saved = load_adapter(there / ADAPTER_FILE, "pixel")
    assert saved.info.base == "base é"
    assert json.loads((there / "adapter_config.json").read_text())["modules_to_save"] == ["b", "c"]
    save_adapter(saved, here)
    for name in (ADAPTER_FILE, "adapter_config.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


# --- two adapters ---


def test_adapters_work_alone_together_and_not_at_all() -> None:
    _, pixel = trained("pixel", RANKS, AdapterInfo(4, 4), r"norm\.bias")
    network = make_network()
    attach_frozen(network, pixel)
    train(network, attach(network, "semantic", 2, 1, "same|up|grouped", r"norm\..*|conv_in\.weight"))
    alone = answer(network)
    semantic = extract(network, "semantic", AdapterInfo(2, 1))
    kept = extract(network, "pixel", pixel.info).tensors
    assert kept.keys() == pixel.tensors.keys()
    assert all(torch.equal(kept[key], value) for key, value in pixel.tensors.items())
    for names, adapters in ((["pixel"], [pixel]), (["semantic"], [semantic]), ([], [])):
        use_adapters(network, names)
        assert_alike(answer(network), answer(merged(*adapters)))
    use_adapters(network, ["semantic"])
    assert torch.equal(answer(network), alone)
    own = dict(make_network().named_parameters())
    total = own["norm.bias"] + sum(each.tensors["norm.bias"] - own["norm.bias"] for each in (pixel, semantic))
    for order in ([pixel, semantic], [semantic, pixel], [pixel, semantic]):  # both have `norm.bias`
        use_adapters(network, [adapter.name for adapter in order])
        assert_alike(network.norm.bias.detach(), total)
        assert_alike(answer(network), answer(merged(*order)))
        for each in order:
            now = extract(network, each.name, each.info)
            assert all(torch.allclose(now.tensors[key], value, atol=1e-6) for key, value in each.tensors.items())


def test_what_is_trained_beside_another_is_what_it_adds(tmp_path: Path) -> None:
    """Whole tensors on whole tensors, on LoRA, and under it."""
    for first, second in ((FULL, FULL), ("", r"(up|conv_in)\.weight"), (r"(up|conv_in)\.weight", "")):
        _, pixel = trained("pixel", {} if first else RANKS, AdapterInfo(0 if first else 4, 4), first)
        network = make_network()
        attach_frozen(network, pixel)
        before = answer(network)
        parameters = attach(network, "semantic", {} if second else RANKS, 4, full=second)
        use_adapters(network, ["pixel", "semantic"])
        for parameter in parameters:
            parameter.requires_grad_(True)
        assert_alike(answer(network), before)
        train(network, parameters)
        together = answer(network)
        assert (together - before).abs().mean() > 1e-2
        semantic = extract(network, "semantic", AdapterInfo(0 if second else 4, 4))
        back = load_adapter(save_adapter(semantic, tmp_path), "semantic")
        assert_alike(answer(merged(pixel, back)), together)
        use_adapters(network, ["pixel"])
        assert torch.equal(answer(network), before)
        again = make_network()
        attach_frozen(again, back)
        attach_frozen(again, pixel)
        use_adapters(again, ["semantic", "pixel"])
        assert_alike(answer(again), together)


def test_an_adapter_learns_on_from_another(caplog: pytest.LogCaptureFixture) -> None:
    before, start = trained("pixel", RANKS, AdapterInfo(4, 4), r"norm\.bias")
    network = make_network()
    attach(network, "pixel", RANKS | {"mirrored": 2}, 4, full=r"norm\..*")
    with caplog.at_level(logging.WARNING, "srcli"):
        fill(network, start, AdapterInfo(4, 4))
    assert "starting from nothing: 2 layers that the adapter to start from lacks, mirrored, norm.weight" in caplog.text
    assert torch.equal(answer(network), answer(before))


# --- what is refused ---


@pytest.mark.parametrize(
    ("rank", "targets", "full", "words"),
    [
        (2, "nowhere", "", "`targets` fits no layer"),
        (2, "norm", "", "`targets` fits no layer"),
        (2, "up", "up", "`full` fits no parameter"),
        ({"up": 2, "norm": 1}, "", "", "no layer of the network can be adapted as `norm`"),
    ],
)
def test_names_that_fit_nothing_are_refused(rank: int | dict[str, int], targets: str, full: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        attach(make_network(), "pixel", rank, 2, targets, full)


@pytest.mark.parametrize(("targets", "full"), [("up", r"tokens\.fc1\.weight"), (r"tokens\.unused_call", "")])
def test_a_parameter_that_layers_share_is_refused(targets: str, full: str) -> None:
    network = make_network()
    network.tokens.fc1.weight = network.tokens.unused_call.weight
    with pytest.raises(UsageError, match=r"`tokens.fc1.weight` and `tokens.unused_call.weight` are one parameter"):
        attach(network, "pixel", 2, 2, targets, full)
    attach(network, "pixel", 2, 2, "up")


def test_the_network_itself_is_no_layer() -> None:
    with pytest.raises(UsageError, match="fits no layer"):
        attach(nn.Linear(3, 3), "pixel", 2, 2, ".*")


def test_an_adapter_of_another_network_names_all_that_does_not_fit() -> None:
    _, adapter = trained("pixel", {"up": 2, "conv_in": 1}, AdapterInfo(2, 2), "tokens.table")
    tensors = adapter.tensors | {"tokens.table": torch.zeros(3), "elsewhere": torch.zeros(1)}
    tensors["up.lora_B.weight"] = torch.zeros(8, 2)
    tensors["norm.lora_A.weight"] = tensors["norm.lora_B.weight"] = torch.zeros(2)
    del tensors["conv_in.lora_A.weight"]
    network = make_network()
    with pytest.raises(ModelError) as caught:
        merge(network, [adapter, Adapter("pixel", tensors, replace(adapter.info, rank=8))])
    for words in (
        "`up` has other",
        "no layer `norm`",
        "`conv_in` lacks",
        "`tokens.table` has",
        "no parameter `elsewhere`",
        "rank 8",
    ):
        assert words in caught.value.message
    assert torch.equal(answer(network), answer(make_network()))


def test_an_adapter_with_other_ranks_or_layers_is_no_start() -> None:
    _, start = trained("pixel", {"up": 2, "conv_in": 1}, AdapterInfo(2, 2), "tokens.table")
    for ranks, full, words in (
        ({"up": 2, "conv_in": 2}, "tokens.table", "another rank in 1 layers, among them `conv_in`"),
        ({"up": 2, "conv_in": 1}, "norm.bias", "leave out: `tokens.table`"),
    ):
        network = make_network()
        attach(network, "pixel", ranks, 2, full=full)
        with pytest.raises(ModelError, match=words):
            fill(network, start, AdapterInfo(2, 2))


@pytest.mark.parametrize("key", ["conv_in.weight", "base_model.model.conv_in.lora_magnitude_vector", "conv_in.lora_A.bias"])
def test_a_file_with_other_tensors_is_no_adapter(key: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(2)}, tmp_path / ADAPTER_FILE, {"rank": "2", "alpha": "2"})
    with pytest.raises(ModelError, match="not an adapter"):
        load_adapter(tmp_path / ADAPTER_FILE, "pixel")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_what_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    tensors = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.full((3, 2), value)}
    path = save_adapter(Adapter("pixel", tensors, AdapterInfo(2, 2.0)), tmp_path)
    with pytest.raises(ModelError, match=r"what is no number: 1 tensor, `a\.lora_B\.weight`"):
        load_adapter(path, "pixel")
