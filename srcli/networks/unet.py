"""The UNet of a one-step model, for one prompt: what depends on the prompt and the timestep alone is computed once.

With both fixed, the keys and values of cross-attention are constants, and the time projection of a residual block is a vector
that is added after its first convolution: it goes into that convolution's bias. Nothing of this changes more than rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from srcli.errors import ModelError
from srcli.networks.blocks import Downsample, Level, Resnet, Upsample
from srcli.networks.tail import PixelTail
from srcli.networks.transformer import Attention, Joined, PromptAttention, SelfAttention, Transformer

_MOST_PERIOD = 10000
_USUAL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "time_embedding_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}
"""What diffusers takes for a key that a UNet's `config.json` lacks."""
_PLAIN: dict[str, Any] = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "resnet_time_scale_shift": "default",
    "act_fn": "silu",
    "center_input_sample": False,
    "dual_cross_attention": False,
    "attention_type": "default",
    "cross_attention_norm": None,
    "num_attention_heads": None,
}
"""What other keys must be, if they are there."""
_KINDS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn", None),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


class FixedPromptUNet(nn.Module):
    """A UNet that is told its prompt and its timesteps beforehand, for inference.

    Its layers have the names of diffusers' `UNet2DConditionModel`, so that weights and adapters fit, until `settle` is called; it
    answers from then on.

    Args:
        config: `config.json` of a `UNet2DConditionModel`.

    Attributes:
        tail: what comes after it, if anything.
        width: channels of the first level.

    Raises:
        ModelError: the network is conditioned on more than a prompt and a timestep, or of another kind than Stable Diffusion's.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        _check(config)
        self._config = config = _USUAL | dict(config)
        channels = config["block_out_channels"]
        self.width = int(channels[0])
        self.time_width = config["time_embedding_dim"] or 4 * self.width
        self.conv_in = _convolution(config["in_channels"], self.width, config["conv_in_kernel"])
        linears = {"linear_1": nn.Linear(self.width, self.time_width), "linear_2": nn.Linear(self.time_width, self.time_width)}
        self.time_embedding: nn.ModuleDict | None = nn.ModuleDict(linears)
        self.down_blocks = nn.ModuleList(self._down_levels(channels))
        self.mid_block = self._middle(channels[-1]) if config["mid_block_type"] else None
        self.up_blocks = nn.ModuleList(self._up_levels(channels[::-1]))
        self.conv_norm_out = nn.GroupNorm(config["norm_num_groups"], self.width, config["norm_eps"])
        self.conv_out = _convolution(self.width, config["out_channels"], config["conv_out_kernel"])
        self.tail: PixelTail | None = None
        self._biases: dict[int, dict[str, Tensor]] = {}
        self._timestep: int | None = None

    # Layers ----------------------------------------------------------------------------------------------------------

    def _down_levels(self, channels: list[int]) -> Iterable[Level]:
        depths = self._each("transformer_layers_per_block")
        for i, (inner, outer) in enumerate(zip([channels[0], *channels], channels, strict=False)):
            layers = self._each("layers_per_block")[i]
            resnets = [self._resnet(outer if j else inner, outer) for j in range(layers)]
            crossed = self._config["down_block_types"][i].startswith("Cross")
            attentions = self._transformers(i, outer, layers, depths[i]) if crossed else ()
            last = i == len(channels) - 1
            yield Level(resnets, attentions, () if last else [Downsample(outer, self._config["downsample_padding"])])

    def _middle(self, width: int) -> Level:
        scale, crossed = self._config["mid_block_scale_factor"], "Cross" in self._config["mid_block_type"]
        depth = self._each("transformer_layers_per_block")[-1]
        attentions = self._transformers(-1, width, 1, depth, only_cross=False) if crossed else ()
        return Level([self._resnet(width, width, scale) for _ in range(1 + crossed)], attentions)

    def _up_levels(self, channels: list[int]) -> Iterable[Level]:
        """Each residual block sees the result of the one before it, and one of the way down."""
        count = len(channels)
        depths = self._config["reverse_transformer_layers_per_block"] or self._each("transformer_layers_per_block")[::-1]
        for i, outer in enumerate(channels):
            layers = self._each("layers_per_block")[::-1][i] + 1
            inner = [channels[max(i - 1, 0)]] + [outer] * (layers - 1)
            skipped = [outer] * (layers - 1) + [channels[min(i + 1, count - 1)]]
            resnets = [self._resnet(a + b, outer) for a, b in zip(inner, skipped, strict=True)]
            crossed = self._config["up_block_types"][i].startswith("Cross")
            attentions = self._transformers(count - 1 - i, outer, layers, depths[i]) if crossed else ()
            yield Level(resnets, attentions, (), () if i == count - 1 else [Upsample(outer)])

    def _resnet(self, inner: int, outer: int, scale: float = 1) -> Resnet:
        return Resnet(inner, outer, self._config["norm_num_groups"], self._config["norm_eps"], scale, self.time_width)

    def _transformers(
        self, level: int, width: int, count: int, depth: int | list[int], *, only_cross: bool | None = None
    ) -> list[Transformer]:
        """Args: level: counted on the way down; depth: blocks of each transformer, or of all."""
        context, heads, crossed = (
            self._each(key)[level] for key in ("cross_attention_dim", "attention_head_dim", "only_cross_attention")
        )
        groups, linear = self._config["norm_num_groups"], bool(self._config["use_linear_projection"])
        only_cross = bool(crossed) if only_cross is None else only_cross
        depths = [depth] * count if isinstance(depth, int) else depth
        return [Transformer(width, context, heads, groups, each, linear=linear, only_cross=only_cross) for each in depths]

    def _each(self, key: str) -> list[Any]:
        """A setting for each level on the way down; many configs give one for all."""
        value = self._config[key]
        return list(value) if isinstance(value, (list, tuple)) else [value] * len(self._config["block_out_channels"])

    # Settling --------------------------------------------------------------------------------------------------------

    def folded(self) -> set[str]:
        """The parameters that `settle` computes with; they should be float32 till then."""
        names = {name for name, _ in self.named_parameters() if name.startswith("time_embedding.")}
        for name, module in self.named_modules():
            if isinstance(module, Resnet):
                names |= {f"{name}.conv1.bias", f"{name}.time_emb_proj.weight", f"{name}.time_emb_proj.bias"}
            elif isinstance(module, PromptAttention):
                names |= {f"{name}.to_k.weight", f"{name}.to_v.weight"}
        return names

    @torch.no_grad()
    def settle(self, embedding: Tensor, timesteps: Iterable[int], joined: Joined | None = None) -> None:
        """Compute what is constant, and drop what is not needed any more.

        Args:
            embedding: of the prompt, (1, tokens, width), float32, where the weights are.
            timesteps: those that will be asked for.
            joined: one and the same for networks that share weights and are all there before the first is settled.
        """
        joined = {} if joined is None else joined
        self._biases = {timestep: {} for timestep in sorted(set(timesteps))}
        embedded = {timestep: self._embedded(timestep) for timestep in self._biases}
        for name, module in self.named_modules():
            if isinstance(module, Resnet) and module.time_emb_proj is not None:
                own, project = cast(Tensor, module.conv1.bias), module.time_emb_proj
                for timestep, told in embedded.items():
                    self._biases[timestep][f"{name}.conv1"] = own + project(told)[0]
                module.conv1.bias = Parameter(own.clone(), requires_grad=False)  # `_tell_time` changes it, in this network alone
                module.time_emb_proj = None
            elif isinstance(module, Attention):
                cast("PromptAttention | SelfAttention", module).settle(embedding, joined)
        self.time_embedding = None

    def _embedded(self, timestep: int) -> Tensor:
        """(1, time_width): what the time projections of the residual blocks see."""
        assert self.time_embedding is not None
        half, device = self.width // 2, self.conv_in.weight.device
        steps = torch.arange(half, dtype=torch.float32, device=device)
        exponent = -math.log(_MOST_PERIOD) * steps / (half - self._config["freq_shift"])
        angles = float(timestep) * torch.exp(exponent)[None]
        waves = (angles.cos(), angles.sin()) if self._config["flip_sin_to_cos"] else (angles.sin(), angles.cos())
        told = functional.pad(torch.cat(waves, -1), (0, self.width % 2))
        linear_1, linear_2 = self.time_embedding.values()
        return functional.silu(linear_2(functional.silu(linear_1(told))))

    # Answering -------------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(self, latent: Tensor, timestep: int) -> Tensor:
        """The network's answer: (N, channels, h, w), in the weights' dtype -> the same."""
        self._tell_time(timestep)
        x: Tensor = self.conv_in(latent)
        skips = [x]
        for level in self.down_blocks:
            skips += _down(level, skips[-1])
        x = skips[-1] if self.mid_block is None else _through(self.mid_block, skips[-1])
        for level in self.up_blocks:
            x = _up(level, x, skips)
        x = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return x if self.tail is None else cast(Tensor, self.tail(latent, x))

    def _tell_time(self, timestep: int) -> None:
        if timestep == self._timestep:
            return
        for name, bias in self._biases[timestep].items():
            parameter = cast(Tensor, self.get_submodule(name).bias)
            parameter.data = bias.to(parameter.device, parameter.dtype)
        self._timestep = timestep


def _down(level: Any, x: Tensor) -> list[Tensor]:
    """All that the way up sees of a level; the last one is its result."""
    results = []
    for i, resnet in enumerate(level.resnets):
        x = resnet(x)
        x = level.attentions[i](x) if level.attentions else x
        results.append(x)
    for layer in level.downsamplers:
        results.append(layer(results[-1]))
    return results


def _through(level: Any, x: Tensor) -> Tensor:
    x = level.resnets[0](x)
    for attention, resnet in zip(level.attentions, level.resnets[1:], strict=True):
        x = resnet(attention(x))
    return x


def _up(level: Any, x: Tensor, skips: list[Tensor]) -> Tensor:
    """Takes from the end of `skips` what the level sees."""
    for i, resnet in enumerate(level.resnets):
        x = resnet(torch.cat((x, skips.pop()), 1))
        x = level.attentions[i](x) if level.attentions else x
    for layer in level.upsamplers:
        x = layer(x, skips[-1].shape[2:])  # of an odd plane, twice its half is not its size
    return x


def _convolution(inner: int, outer: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, kernel, padding=(kernel - 1) // 2)


def _check(config: Mapping[str, Any]) -> None:
    """Raises: ModelError."""
    other = [f"`{key}` = `{config[key]}`" for key, value in _PLAIN.items() if config.get(key, value) != value]
    for key, known in _KINDS.items():
        kinds = config.get(key, _USUAL[key])
        strange = [kind for kind in (kinds if isinstance(kinds, (list, tuple)) else [kinds]) if kind not in known]
        other += [f"`{kind}`" for kind in dict.fromkeys(strange)]
    if other:
        message = f"the base's UNet is of a kind that srcli cannot run: {', '.join(other)}"
        raise ModelError(message, "take a base such as SD 2.1-base, which is conditioned on a prompt and a timestep alone")
