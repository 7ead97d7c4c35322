"""DINO's ViT-B/16, a frozen feature network that learnt from pictures without labels; fetched from the hub.

Caron et al., "Emerging properties in self-supervised vision transformers", 2021; Apache-2.0. It is asked as vision-aided GANs ask
it (Kumari, Zhang, Shechtman, Zhu, "Ensembling off-the-shelf models for GAN training", 2022), and S3Diff after them: pictures of
any size as 224 x 224, and of the answers two maps and one vector.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError
from srcli.networks.features import Depth, FeatureNetwork
from srcli.rows.base import BaseSource
from srcli.store import hub
from srcli.store.weights import load_pickle

DINO = "dino-vitb16"
"""What recipes and `srcli models fetch` call it."""
SOURCE = BaseSource(repo="facebook/dino-vitb16", file="pytorch_model.bin")
"""The file has no sum here; the hub's own is checked."""

_SIDE, _PATCH, _BLOCKS, _HEAD = 224, 16, 12, 64
"""Of its pictures and their patches in pixels; blocks; channels of a head of attention."""
_EPSILON = 1e-6
_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of CLIP's pictures, as vision-aided GANs have it, with ImageNet's deviation."""
_DEPTHS = (Depth("block4", 5, _PATCH), Depth("block8", 9, _PATCH), Depth("class", 12, _SIDE))
"""Counted from 0, as blocks are there; of the last one the class token. Cells are those of the picture of `_SIDE`."""
_PUBLISHED = {
    "norm1": "layernorm_before",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "merge": "attention.output.dense",
    "norm2": "layernorm_after",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
}
"""Of a block's layers, the names in the file."""
_FETCH = f"`srcli models fetch {DINO}`"


class VisionTransformer(FeatureNetwork):
    """A ViT (Dosovitskiy et al., "An image is worth 16x16 words", 2020) as its answers after the final norm.

    Args:
        width: of its tokens, a multiple of 64; 768 for ViT-B.
    """

    def __init__(self, width: int) -> None:
        super().__init__([_Tokens(width), *(_Block(width) for _ in range(_BLOCKS))], _DEPTHS, mean=_MEAN)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.requires_grad_(False).eval()

    def seen(self, depth: Depth, answer: Tensor) -> Tensor:
        """(N, 1 + 14 · 14, C) -> (N, C, 14, 14), or of the deepest one the class token, (N, C, 1, 1)."""
        tokens: Tensor = self.norm(answer).transpose(1, 2)
        cells = _SIDE // depth.cell_px
        chosen = tokens[..., :1] if depth is self.depths[-1] else tokens[..., 1:]
        return chosen.reshape(*chosen.shape[:2], cells, cells)


class _Tokens(nn.Module):
    """(N, 3, H, W) -> a token for the class and one for each patch of the picture at 224 x 224: (N, 1 + 14 · 14, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 1 + (_SIDE // _PATCH) ** 2, width))
        self.patches = nn.Conv2d(3, width, _PATCH, _PATCH)

    def forward(self, picture: Tensor) -> Tensor:
        patches = self.patches(functional.interpolate(picture, (_SIDE, _SIDE), mode="area"))
        return torch.cat([self.first.expand(len(picture), -1, -1), patches.flatten(2).transpose(1, 2)], 1) + self.places


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPSILON), nn.LayerNorm(width, eps=_EPSILON)
        self.query, self.key, self.value, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        heads = (layer(normed).unflatten(2, (-1, _HEAD)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(*heads)
        tokens = tokens + self.merge(attended.transpose(1, 2).flatten(2))
        answer: Tensor = tokens + self.narrow(functional.gelu(self.widen(self.norm2(tokens))))
        return answer


def dino(device: torch.device, needed_by: str) -> VisionTransformer:
    """DINO's network from the hub's cache. Downloads nothing; `srcli models fetch` does.

    Args:
        device: where it computes.
        needed_by: what the message begins with where the file is missing.

    Raises:
        ModelError: the file is missing, damaged or another one.
    """
    folder = hub.cached_base(SOURCE)
    if folder is None:
        hint = (
            f"{_FETCH} downloads it (343 MB, licence Apache-2.0); where no hub is reached, take the network `efficientnet-lite0`"
        )
        raise ModelError(f"{needed_by} needs the network `{DINO}`, which is not downloaded", hint)
    return _read(folder / (SOURCE.file or "")).to(device)


def _read(path: Path) -> VisionTransformer:
    weights = load_pickle(path)
    first = weights.get("embeddings.cls_token")
    width = first.shape[-1] if isinstance(first, Tensor) and first.ndim else 0
    if not width or width % _HEAD:
        raise _another(path, "embeddings.cls_token")
    network = VisionTransformer(width)
    wanted = network.state_dict()
    for name, own in wanted.items():
        value = weights.get(_published(name))
        if not isinstance(value, Tensor) or value.shape != own.shape:
            raise _another(path, _published(name))
        wanted[name] = value
    network.load_state_dict(wanted)
    return network


def _published(name: str) -> str:
    """What the file calls one of our parameters."""
    block = re.fullmatch(r"steps\.(\d+)\.(\w+)\.(weight|bias)", name)
    if block is None or block[1] == "0":
        tokens = {"first": "cls_token", "places": "position_embeddings", "patches": "patch_embeddings.projection"}
        part, _, leaf = name.removeprefix("steps.0.").partition(".")
        return f"embeddings.{tokens[part]}.{leaf}".rstrip(".") if part in tokens else f"layernorm.{leaf}"
    return f"encoder.layer.{int(block[1]) - 1}.{_PUBLISHED[block[2]]}.{block[3]}"


def _another(path: Path, name: str) -> ModelError:
    message = f"`{path}` holds no weights of DINO's ViT-B/16: `{name}` is missing or of another shape"
    return ModelError(message, f"delete it and get it anew: {_FETCH}")
