"""The UNet of a one-step model, for one prompt: what depends on the prompt and the timestep alone is computed once.

With both fixed, the keys and values of cross-attention are constants, and the time projection of a residual block is a vector
that is added after its first convolution: it goes into that convolution's bias. Nothing of this changes more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError
from srcli.networks.device import compiled


class FixedPromptUNet(nn.Module):
    """A `UNet2DConditionModel` that was told its prompt and its timesteps beforehand, for inference.

    Args:
        unet: float32, on the CPU, adapters merged; it is taken over, and what is not needed any more is dropped from it.
        embedding: of the prompt, (1, tokens, width), float32.
        timesteps: those that will be asked for.

    Raises:
        ModelError: the network is conditioned on more than a prompt and a timestep.
    """

    def __init__(self, unet: Any, embedding: Tensor, timesteps: Iterable[int]) -> None:
        super().__init__()
        _check(unet)
        with torch.no_grad():
            self._biases = _fold_times(unet, sorted(set(timesteps)))
            _replace(unet, "Attention", lambda old: _attention(old, embedding))
            _replace(unet, "ResnetBlock2D", Resnet)
        if getattr(unet, "tail", None) is not None:
            unet.tail.settle()
        self.network = unet.requires_grad_(False).eval()
        self.width = int(unet.config.block_out_channels[0])
        self._timestep: int | None = None
        self._answer: Callable[[Tensor], Tensor] = self._walk

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.network.dtype)

    def forward(self, latent: Tensor, timestep: int) -> Tensor:
        """The network's answer: (N, channels, h, w), in the weights' dtype -> the same."""
        self._tell_time(timestep)
        return self._answer(latent)

    def compile_walk(self) -> None:
        """Compile the network at its first call."""
        self._answer = compiled(self._walk)

    def _walk(self, latent: Tensor) -> Tensor:
        unet = self.network
        x = unet.conv_in(latent)
        skips = [x]
        for block in unet.down_blocks:
            x, outputs = block(hidden_states=x, temb=None)
            skips += outputs
        if unet.mid_block is not None:
            x = unet.mid_block(x, None)
        for block in unet.up_blocks:
            count = len(block.resnets)
            skips, used = skips[:-count], tuple(skips[-count:])
            size = skips[-1].shape[2:] if skips else None  # of an odd plane, twice its half is not its size
            x = block(hidden_states=x, temb=None, res_hidden_states_tuple=used, upsample_size=size)
        if unet.conv_norm_out is not None:
            x = unet.conv_act(unet.conv_norm_out(x))
        answer: Tensor = unet.conv_out(x)
        tail = getattr(unet, "tail", None)
        return answer if tail is None else cast(Tensor, tail(latent, answer))

    def _tell_time(self, timestep: int) -> None:
        if timestep == self._timestep:
            return
        for name, bias in self._biases[timestep].items():
            parameter = self.network.get_submodule(name).bias
            parameter.data = bias.to(parameter.device, parameter.dtype)
        self._timestep = timestep


class PromptAttention(nn.Module):
    """Attention to a prompt that is known: its keys and values are constants.

    Args:
        attention: diffusers' trained `Attention`; its layers are shared.
        embedding: of the prompt, (1, tokens, width).
    """

    def __init__(self, attention: Any, embedding: Tensor) -> None:
        super().__init__()
        self.heads, self.scale = attention.heads, attention.scale
        self.to_q, self.to_out = attention.to_q, attention.to_out[0]
        self.keys: Tensor
        self.values: Tensor
        self.register_buffer("keys", _heads(attention.to_k(embedding), self.heads).contiguous(), persistent=False)
        self.register_buffer("values", _heads(attention.to_v(embedding), self.heads).contiguous(), persistent=False)

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """(N, L, C) -> the same shape."""
        queries = _heads(self.to_q(hidden_states), self.heads)
        keys, values = (known.expand(len(queries), -1, -1, -1) for known in (self.keys, self.values))
        return _attended(queries, keys, values, self)


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, with one projection for queries, keys and values.

    Args:
        attention: diffusers' trained `Attention`.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads, self.scale, self.to_out = attention.heads, attention.scale, attention.to_out[0]
        linears = [attention.to_q, attention.to_k, attention.to_v]
        self.to_qkv = nn.Linear(linears[0].in_features, sum(each.out_features for each in linears), linears[0].bias is not None)
        self.to_qkv.weight.copy_(torch.cat([each.weight for each in linears]))
        if self.to_qkv.bias is not None:
            self.to_qkv.bias.copy_(torch.cat([each.bias for each in linears]))

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """(N, L, C) -> the same shape."""
        queries, keys, values = (_heads(part, self.heads) for part in self.to_qkv(hidden_states).chunk(3, dim=2))
        return _attended(queries, keys, values, self)


def _attention(old: Any, embedding: Tensor) -> nn.Module:
    return PromptAttention(old, embedding) if old.is_cross_attention else SelfAttention(old)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """(N, L, heads * d) -> (N, heads, L, d)."""
    return tokens.reshape(len(tokens), tokens.shape[1], heads, -1).transpose(1, 2)


def _attended(queries: Tensor, keys: Tensor, values: Tensor, attention: Any) -> Tensor:
    mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    result: Tensor = attention.to_out(mixed.transpose(1, 2).flatten(2))
    return result


class Resnet(nn.Module):
    """diffusers' `ResnetBlock2D` without time.

    Args:
        block: the trained block; its layers are shared.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.conv_shortcut, self.output_scale_factor = block.conv_shortcut, block.output_scale_factor

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        """(N, C, H, W) -> (N, D, H, W); `temb` is there because the blocks around it pass it."""
        return residual(self, x)


def residual(block: Any, x: Tensor) -> Tensor:
    """What diffusers' `ResnetBlock2D` computes without time, in as little memory as can be, and without gradients.

    x + conv(silu(norm(conv(silu(norm(x)))))): (N, C, H, W) -> (N, D, H, W).
    """
    h = block.conv1(functional.silu(block.norm1(x), inplace=True))
    h = block.conv2(functional.silu(block.norm2(h), inplace=True))
    h += x if block.conv_shortcut is None else block.conv_shortcut(x)
    result: Tensor = h if block.output_scale_factor == 1 else h / block.output_scale_factor
    return result


def _check(unet: Any) -> None:
    """Raises: ModelError."""
    config = unet.config
    plain = {
        "class_embed_type": None,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "encoder_hid_dim_type": None,
        "time_cond_proj_dim": None,
        "resnet_time_scale_shift": "default",
        "act_fn": "silu",
        "center_input_sample": False,
    }
    other = [f"`{key}` = `{config.get(key)}`" for key, value in plain.items() if config.get(key, value) != value]
    other += [f"`{kind}`" for kind in (*config.down_block_types, *config.up_block_types) if "Simple" in kind or "Resnet" in kind]
    if other:
        message = f"the base's UNet is of a kind that srcli cannot run: {', '.join(other)}"
        raise ModelError(message, "take a base such as SD 2.1-base, which is conditioned on a prompt and a timestep alone")


def _fold_times(unet: Any, timesteps: list[int]) -> dict[int, dict[str, Tensor]]:
    """The biases that hold each timestep, by the convolutions' names; the time embedding is dropped from `unet`."""
    embedded = {}
    for timestep in timesteps:
        embedding = unet.time_embedding(unet.time_proj(torch.tensor([timestep])).float())
        embedded[timestep] = embedding if unet.time_embed_act is None else unet.time_embed_act(embedding)
    biases: dict[int, dict[str, Tensor]] = {timestep: {} for timestep in timesteps}
    for name, block in unet.named_modules():
        projection = getattr(block, "time_emb_proj", None)
        if projection is None:
            continue
        for timestep, embedding in embedded.items():
            told = embedding if block.skip_time_act else functional.silu(embedding)
            biases[timestep][f"{name}.conv1"] = block.conv1.bias + projection(told)[0]
        block.time_emb_proj = None
    unet.time_embedding = None
    return biases


def _replace(unet: nn.Module, kind: str, make: Callable[[Any], nn.Module]) -> None:
    """Put `make(module)` in the place of each module of diffusers' class `kind`."""
    for name, module in [(name, module) for name, module in unet.named_modules() if type(module).__name__ == kind]:
        parent, _, last = name.rpartition(".")
        setattr(unet.get_submodule(parent), last, make(module))
