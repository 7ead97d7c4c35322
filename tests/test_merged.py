from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import WIDTH, make_base
from torch import Tensor

from srcli.families.pisasr import TARGETS
from srcli.networks.adapters import Adapter, AdapterInfo
from srcli.networks.attached import attach, attach_frozen, extract, use_adapters
from srcli.networks.backbone import load_unet
from srcli.networks.merged import merge_where_it_pays

LATENT = torch.randn(2, 48, 8, 8, generator=torch.Generator().manual_seed(1))
PROMPT = torch.randn(2, 2, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def frozen_adapter(base: Path) -> Adapter:
    unet = load_unet(base)
    with torch.no_grad():
        for parameter in attach(unet, "pixel", 12, 12, TARGETS):
            parameter.normal_(0, 0.05)
    return extract(unet, "pixel", AdapterInfo(12, 12, "base", "pixel"))


def two_adapters(base: Path, rank: int, pixel: Adapter) -> tuple[Any, list[torch.nn.Parameter]]:
    torch.manual_seed(3)
    unet = load_unet(base)
    attach_frozen(unet, pixel)
    parameters = attach(unet, "semantic", rank, 2.0 * rank, TARGETS)
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(0, 0.05)
    return unet, parameters


def answer(unet: Any, names: list[str]) -> Tensor:
    use_adapters(unet, names)
    result: Tensor = unet(LATENT, 1, encoder_hidden_states=PROMPT).sample
    return result


def test_merged_layers_answer_and_learn_as_separate_ones(base: Path) -> None:
    pixel = frozen_adapter(base)
    separate, their = two_adapters(base, 12, pixel)
    merged, mine = two_adapters(base, 12, pixel)
    assert merge_where_it_pays(merged, "semantic") > 20
    for names in (["pixel", "semantic"], ["semantic"], ["pixel"], []):
        assert torch.allclose(answer(merged, names), answer(separate, names), rtol=0, atol=2e-5), names
    for unet, parameters in ((separate, their), (merged, mine)):
        use_adapters(unet, ["pixel", "semantic"])
        for parameter in unet.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        unet(LATENT, 1, encoder_hidden_states=PROMPT).sample.square().mean().backward()
    largest = max(float(parameter.grad.abs().max()) for parameter in their if parameter.grad is not None)
    assert largest > 0
    for one, other in zip(mine, their, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5 * largest)


def test_what_is_saved_does_not_depend_on_it(base: Path) -> None:
    pixel = frozen_adapter(base)
    unet, _ = two_adapters(base, 12, pixel)
    before = extract(unet, "semantic", AdapterInfo(12, 24, "base", "semantic")).tensors
    merge_where_it_pays(unet, "semantic")
    after = extract(unet, "semantic", AdapterInfo(12, 24, "base", "semantic")).tensors
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_low_ranks_stay_separate(base: Path) -> None:
    """The base's layers are 16 wide: three products with halves of rank 1 cost less than one with the weight."""
    unet = load_unet(base)
    attach(unet, "pixel", 1, 1.0, TARGETS)
    layers = sum(1 for name, _ in unet.named_modules() if name.endswith("lora_A"))
    assert merge_where_it_pays(unet, "pixel") < layers / 3
