"""The UNet that knows its prompt and its timesteps, against diffusers' own with the same weights; and how both are loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_model import make_base
from torch import Tensor

from srcli.errors import ModelError
from srcli.families.pisasr import TARGETS
from srcli.networks.adapters import Adapter, AdapterInfo, merge
from srcli.networks.attached import attach, extract
from srcli.networks.backbone import load_passes, load_unet
from srcli.networks.unet import FixedPromptUNet
from srcli.rows.base import BUILTIN

PISA = Path(__file__).parent / "data" / "pisa" / "base"


def make_unet(**options: Any) -> Any:
    """Of diffusers."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**config | options).eval().requires_grad_(False)


def ours_of(theirs: Any, prompt: Tensor, timesteps: list[int]) -> FixedPromptUNet:
    """Ours, with the same weights."""
    ours = FixedPromptUNet(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    ours.settle(prompt, timesteps)
    return ours.eval()


def prompt_of(width: int) -> Tensor:
    return torch.randn(1, 7, width, generator=torch.Generator().manual_seed(1))


PROMPT = prompt_of(24)


@torch.no_grad()
def check_same(theirs: Any, size: tuple[int, int], ours: FixedPromptUNet | None = None) -> None:
    """At several timesteps, in turn."""
    prompt = prompt_of(theirs.config.cross_attention_dim)
    ours = ours_of(theirs, prompt, [1, 250]) if ours is None else ours
    latent = torch.randn(2, theirs.config.in_channels, *size, generator=torch.Generator().manual_seed(2))
    for timestep in (1, 250, 1):
        expected = theirs(latent, timestep, encoder_hidden_states=prompt.expand(2, -1, -1)).sample
        torch.testing.assert_close(ours(latent, timestep), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_linear_projection": True, "in_channels": 3, "out_channels": 5, "conv_in_kernel": 5, "conv_out_kernel": 1},
        {"only_cross_attention": True, "flip_sin_to_cos": False, "freq_shift": 1},
        {"only_cross_attention": [False, True], "attention_head_dim": (2, 8)},
        {"mid_block_type": None, "layers_per_block": (2, 1), "downsample_padding": 0},
        {"mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1.4},
        {"transformer_layers_per_block": (2, 1), "time_embedding_dim": 40, "norm_eps": 1e-3, "attention_head_dim": 3},
        {"transformer_layers_per_block": [[1, 2], [1, 1]], "reverse_transformer_layers_per_block": [[1, 1, 1], [1, 2, 1]]}
        | {"mid_block_type": None, "layers_per_block": 2},
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_it_answers_as_the_network_that_is_told_both(options: dict[str, Any], size: tuple[int, int]) -> None:
    check_same(make_unet(**options), size)


@pytest.mark.parametrize("kind", ["pisa", "tiny", "random"])
def test_the_weights_of_a_base_are_loaded_into_the_same_places(kind: str, tmp_path: Path) -> None:
    base = {"pisa": PISA, "tiny": BUILTIN / "tiny"}.get(kind) or make_base(tmp_path)
    theirs = load_unet(base)
    prompt = prompt_of(theirs.config.cross_attention_dim)
    check_same(theirs, (12, 9), load_passes(base, {"all": []}, torch.float32, prompt, [1, 250])["all"])


@torch.no_grad()
def test_the_timestep_and_the_prompt_do_matter() -> None:
    latent = torch.randn(1, 4, 8, 8)
    ours, other = ours_of(make_unet(), PROMPT, [1, 250]), ours_of(make_unet(), PROMPT * 2, [1, 250])
    assert not torch.allclose(ours(latent, 1), ours(latent, 250), atol=1e-3)
    assert not torch.allclose(ours(latent, 1), other(latent, 1), atol=1e-3)


def test_what_is_constant_is_no_weight_any_more() -> None:
    names = [name for name, _ in ours_of(make_unet(), PROMPT, [1]).named_parameters()]
    assert not [name for name in names if "time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("resnet_time_scale_shift", "scale_shift", "resnet_time_scale_shift"),
        ("class_embed_type", "timestep", "`class_embed_type` = `timestep`"),
        ("cross_attention_norm", "layer_norm", "cross_attention_norm"),
        ("down_block_types", ["CrossAttnDownBlock2D", "AttnDownBlock2D"], "AttnDownBlock2D"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DSimpleCrossAttn"),
    ],
)
def test_a_network_of_another_kind_is_refused(key: str, value: object, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        FixedPromptUNet({**make_unet().config, key: value})


# --- loading ---


def make_adapter(base: Path, name: str, targets: str) -> Adapter:
    unet = load_unet(base)
    torch.manual_seed(len(name))
    with torch.no_grad():
        for parameter in attach(unet, name, 2, 4, targets):
            parameter.normal_(0, 0.1)
    return extract(unet, name, AdapterInfo(2, 4))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PISA, tmp_path / "base"))


def first_pass(base: Path, dtype: torch.dtype = torch.float32, adapters: list[Adapter] | None = None) -> FixedPromptUNet:
    return load_passes(base, {"first": adapters or []}, dtype, prompt_of(32), [1])["first"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_merged_in_float32_and_cast_once(base: Path, dtype: torch.dtype) -> None:
    adapters = [make_adapter(base, "pixel", TARGETS), make_adapter(base, "semantic", r".*attn2\.to_k|conv_out")]
    theirs = load_unet(base)
    merge(theirs, adapters)
    expected = ours_of(theirs, prompt_of(32), [1]).to(dtype)
    ours = first_pass(base, dtype, adapters)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    latent = torch.randn(1, 4, 8, 8, dtype=dtype)
    ours(latent, 1), expected(latent, 1)  # who tells the time to a network sets its biases
    for name, value in {**dict(ours.named_parameters()), **dict(ours.named_buffers())}.items():
        assert torch.equal(value, {**dict(expected.named_parameters()), **dict(expected.named_buffers())}[name]), name


@torch.no_grad()
def test_passes_share_what_no_adapter_changes_and_keep_their_own_time(base: Path) -> None:
    pixel, semantic = make_adapter(base, "pixel", "conv_in"), make_adapter(base, "semantic", r"conv_out|.*attn2\.to_k")
    passes = {"one": [pixel], "both": [pixel, semantic]}
    unets = load_passes(base, passes, torch.bfloat16, prompt_of(32), [1, 250])
    one, both = (dict(unets[key].named_parameters()) for key in passes)
    own = {name for name in one if one[name].data_ptr() != both[name].data_ptr()}
    assert "conv_out.weight" in own
    assert "conv_in.weight" not in own
    assert all("conv1.bias" in name for name in own - {"conv_out.weight"})
    latent = torch.randn(1, 4, 8, 8).bfloat16()
    alone = load_passes(base, {"one": [pixel]}, torch.bfloat16, prompt_of(32), [1, 250])["one"]
    for timestep in (1, 250):
        unets["both"](latent, 251 - timestep)
        assert torch.equal(unets["one"](latent, timestep), alone(latent, timestep))


WEIGHTS = "diffusion_pytorch_model"


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_weights_may_be_in_shards(base: Path, variant: str) -> None:
    whole, folder = base / "unet" / f"{WEIGHTS}.safetensors", base / "unet"
    tensors = {key: value.half() for key, value in load_file(whole).items()}
    save_file(tensors, whole)
    latent = torch.randn(1, 4, 8, 8)
    expected = first_pass(base)(latent, 1)
    whole.unlink()
    index: dict[str, str] = {}
    for number in (0, 1):
        file = f"{WEIGHTS}{variant}-0000{number + 1}-of-00002.safetensors"
        part = dict(list(tensors.items())[number::2])
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{WEIGHTS}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(first_pass(base)(latent, 1), expected)
    next(folder.glob("*-00002-of-*")).unlink()
    with pytest.raises(ModelError, match="no usable `unet`"):
        first_pass(base)


def test_weights_that_lack_or_do_not_fit_are_named(base: Path) -> None:
    file = base / "unet" / f"{WEIGHTS}.safetensors"
    tensors = load_file(file)
    save_file({key: value for key, value in tensors.items() if key != "conv_in.bias"}, file)
    with pytest.raises(ModelError, match=r"no usable `unet`.*lack 1 .*`conv_in.bias`"):
        first_pass(base)
    save_file(tensors | {"conv_in.bias": torch.zeros(3)}, file)
    with pytest.raises(ModelError, match=r"`conv_in.bias` is \(3,\), not \(16,\)"):
        first_pass(base)


@pytest.mark.parametrize("content", [b"\x10\0\0\0\0\0\0\0nonsense", b""])
def test_a_damaged_file_is_named(base: Path, content: bytes) -> None:
    (base / "unet" / f"{WEIGHTS}.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="no usable `unet`"):
        first_pass(base)


@pytest.mark.parametrize("change", [{"block_out_channels": [15, 32]}, {"attention_head_dim": 0}, {"layers_per_block": "two"}])
def test_a_configuration_that_makes_no_sense_is_an_error(base: Path, change: dict[str, Any]) -> None:
    file = base / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match="no usable `unet`"):
        first_pass(base)
