"""The UNet that knows its prompt and its timesteps, against diffusers' own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from srcli.errors import ModelError
from srcli.networks.unet import FixedPromptUNet


def make_unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
        **options,
    ).eval()


PROMPT = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options", [{}, {"use_linear_projection": True}, {"only_cross_attention": True}, {"mid_block_type": None}]
)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (6, 10)])
@torch.no_grad()
def test_it_answers_as_the_network_that_is_told_both(options: dict[str, Any], size: tuple[int, int]) -> None:
    latent = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))
    ours = FixedPromptUNet(make_unet(**options), PROMPT, [1, 250])
    theirs = make_unet(**options)
    for timestep in (1, 250, 1):
        expected = theirs(latent, timestep, encoder_hidden_states=PROMPT.expand(2, -1, -1)).sample
        assert torch.allclose(ours(latent, timestep), expected, atol=1e-5)


@torch.no_grad()
def test_the_timestep_and_the_prompt_do_matter() -> None:
    latent = torch.randn(1, 4, 8, 8)
    ours = FixedPromptUNet(make_unet(), PROMPT, [1, 250])
    other = FixedPromptUNet(make_unet(), PROMPT * 2, [1, 250])
    assert not torch.allclose(ours(latent, 1), ours(latent, 250), atol=1e-3)
    assert not torch.allclose(ours(latent, 1), other(latent, 1), atol=1e-3)


def test_what_is_constant_is_no_weight_any_more() -> None:
    ours = FixedPromptUNet(make_unet(), PROMPT, [1])
    names = [name for name, _ in ours.named_parameters()]
    assert not [name for name in names if "time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name]


def test_a_network_that_wants_more_than_prompt_and_time_is_refused() -> None:
    with pytest.raises(ModelError, match="resnet_time_scale_shift"):
        FixedPromptUNet(make_unet(resnet_time_scale_shift="scale_shift"), PROMPT, [1])
