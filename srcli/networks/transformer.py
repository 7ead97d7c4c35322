"""The transformers of Stable Diffusion's UNet, for one prompt that is known beforehand: its keys and values are constants.

Layers have diffusers' names until `settle` is called, which takes the embedding of the prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

_NORM_EPS = 1e-6

Joined = dict[tuple[int, ...], Parameter]
"""What networks that share weights have made of several of them, by these weights' ids."""


class Attention(nn.Module):
    """What both kinds of attention have.

    Args:
        width: channels of a token.
        context: channels of what keys and values are made of.
        heads: of attention, of width // heads channels each.
    """

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        inner = width // heads * heads
        self.heads = heads
        self.to_q: nn.Linear | None = nn.Linear(width, inner, bias=False)
        self.to_k: nn.Linear | None = nn.Linear(context, inner, bias=False)
        self.to_v: nn.Linear | None = nn.Linear(context, inner, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])

    def _heads(self, tokens: Tensor) -> Tensor:
        """(N, L, heads * d) -> (N, heads, L, d)."""
        return tokens.reshape(len(tokens), tokens.shape[1], self.heads, -1).transpose(1, 2)

    def _attended(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        result: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return result


class PromptAttention(Attention):
    """Attention to the prompt."""

    keys: Tensor
    values: Tensor

    def settle(self, embedding: Tensor, joined: Joined) -> None:
        """Compute keys and values of the prompt's embedding, (1, tokens, context), and drop what is not needed any more."""
        assert self.to_k is not None
        assert self.to_v is not None
        self.register_buffer("keys", self._heads(self.to_k(embedding)).contiguous(), persistent=False)
        self.register_buffer("values", self._heads(self.to_v(embedding)).contiguous(), persistent=False)
        self.to_k = self.to_v = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same shape."""
        assert self.to_q is not None
        queries = self._heads(self.to_q(x))
        keys, values = (known.expand(len(queries), -1, -1, -1) for known in (self.keys, self.values))
        return self._attended(queries, keys, values)


class SelfAttention(Attention):
    """Attention of a sequence to itself."""

    def settle(self, embedding: Tensor, joined: Joined) -> None:
        """Make one projection of those for queries, keys and values, or take the one that was made of the same weights."""
        weights = [layer.weight for layer in (self.to_q, self.to_k, self.to_v) if layer is not None]
        key = tuple(map(id, weights))
        if key not in joined:
            joined[key] = Parameter(torch.cat(weights), requires_grad=False)
        self.to_q = self.to_k = self.to_v = None
        self.to_qkv = nn.Linear(1, 1, bias=False, device="meta")
        self.to_qkv.weight = joined[key]

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same shape."""
        queries, keys, values = (self._heads(part) for part in self.to_qkv(x).chunk(3, dim=2))
        return self._attended(queries, keys, values)


class GatedLinear(nn.Module):
    """A linear layer of which one half gates the other."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> (N, L, inner)."""
        values, gates = self.proj(x).chunk(2, dim=-1)
        return values * functional.gelu(gates)  # type: ignore[no-any-return]


class Feed(nn.Module):
    """The two layers that each token goes through alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GatedLinear(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention of the tokens to each other, or twice to the prompt (`only_cross`), and the layers after it."""

    def __init__(self, width: int, context: int, heads: int, *, only_cross: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = PromptAttention(width, context, heads) if only_cross else SelfAttention(width, width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), PromptAttention(width, context, heads)
        self.norm3, self.ff = nn.LayerNorm(width), Feed(width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, width) -> the same shape."""
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x)) + x
        return self.ff(self.norm3(x)) + x  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Transformer blocks over the cells of a plane, beside the plane itself.

    Args:
        channels: of the plane.
        context: channels of the prompt's embedding.
        heads: of attention.
        groups: of the norm.
        depth: blocks.
        linear: whether the layers in and out are linear ones instead of convolutions.
        only_cross: see `TransformerBlock`.
    """

    def __init__(
        self, channels: int, context: int, heads: int, groups: int, depth: int, *, linear: bool, only_cross: bool = False
    ) -> None:
        super().__init__()
        inner = channels // heads * heads
        self.linear = linear
        self.norm = nn.GroupNorm(groups, channels, _NORM_EPS)
        self.proj_in = nn.Linear(channels, inner) if linear else nn.Conv2d(channels, inner, 1)
        blocks = (TransformerBlock(inner, context, heads, only_cross=only_cross) for _ in range(depth))
        self.transformer_blocks = nn.Sequential(*blocks)
        self.proj_out = nn.Linear(inner, channels) if linear else nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        n, _, height, width = x.shape
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.permute(0, 2, 3, 1).reshape(n, height * width, -1)
        if self.linear:
            h = self.proj_in(h)
        h = self.transformer_blocks(h)
        if self.linear:
            h = self.proj_out(h)
        h = h.reshape(n, height, width, -1).permute(0, 3, 1, 2).contiguous()
        if not self.linear:
            h = self.proj_out(h)
        return h + x  # type: ignore[no-any-return]
