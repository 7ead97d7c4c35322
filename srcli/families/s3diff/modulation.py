"""Weights that depend on a picture's degradation: W + s · B · Mᵀ · A, with a matrix M for each block of a network.

    M_i = fuse([relu(degradation(v)), relu(block(e_i))]),  v = Fourier features of the scores, e_i the embedding of block i

(eqs. 2-4 of S3Diff). The factor s = alpha / rank is the adapter's; what S3Diff has besides, another factor for the encoder than
for the UNet, stands in `fuse`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from srcli.errors import ModelError
from srcli.networks.adapters import Adapter

UNET, VAE = "unet", "vae"
"""The networks, and the first words of their layers' names in an adapter."""
CONDITIONER = "_conditioner"
"""With a network's name before it, that of its conditioner."""
FREQUENCIES = "frequencies"
WIDTH = 64
"""Of a block's embedding; also the number of frequencies."""
VAE_BLOCKS, UNET_BLOCKS = 6, 10
"""Of Stable Diffusion's networks of four levels."""


class Conditioner(nn.Module):
    """What makes the matrices of one network's blocks.

    Args:
        blocks: of the network.
        rank: of the matrices.
    """

    def __init__(self, blocks: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.embedding = nn.Embedding(blocks, WIDTH)
        self.degradation = nn.Linear(4 * WIDTH, 4 * WIDTH)
        self.block = nn.Linear(WIDTH, WIDTH)
        self.fuse = nn.Linear(5 * WIDTH, rank**2)

    def forward(self, features: Tensor) -> Tensor:
        """Fourier features, (N, 256) -> M of each block: (N, blocks, rank, rank)."""
        told = functional.relu(self.degradation(features))[:, None]
        blocks = functional.relu(self.block(self.embedding.weight))[None]
        both = torch.cat((told.expand(-1, blocks.shape[1], -1), blocks.expand(len(told), -1, -1)), 2)
        matrices: Tensor = self.fuse(both).unflatten(2, (self.rank, self.rank))
        return matrices


def fourier_features(scores: Tensor, frequencies: Tensor) -> Tensor:
    """[sin f_0, cos f_0, sin f_1, cos f_1] with f_k = 2π · score_k · frequencies: (N, 2), (64,) -> (N, 256)."""
    angles = 2 * math.pi * scores[:, :, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), 2).flatten(1)


def block_of(network: str, layer: str) -> int:
    """The block of a layer, which tells its matrix.

    Args:
        network: `UNET` or `VAE`.
        layer: its name in that network.

    >>> block_of("unet", "up_blocks.2.resnets.1.conv1"), block_of("vae", "encoder.conv_out")
    (7, 5)
    """
    level = re.match(r"(?:encoder\.)?(down|up)_blocks\.(\d+)\.", layer)
    if level:
        return int(level[2]) + (5 if level[1] == "up" else 0)
    if "mid_block." in layer:
        return 4
    return 9 if network == UNET else 5


class Modulation:
    """An adapter of encoder and UNet, and what makes its matrices of a picture's scores.

    Args:
        adapter: with layers of `unet` and `vae`, the conditioners' weights, and `frequencies`.
        device: where it will be merged.

    Raises:
        ModelError: it is another method's, or not whole.
    """

    def __init__(self, adapter: Adapter, device: torch.device) -> None:
        parts = {network: _part(adapter, network, device) for network in (UNET, VAE)}
        self.unet, self.vae = (parts[network] for network in (UNET, VAE))
        self.conditioners = {network: _conditioner_of(adapter, network) for network, part in parts.items() if part.modules}
        if UNET not in self.conditioners or FREQUENCIES not in adapter.tensors:
            raise _not_ours(adapter)
        self._frequencies = adapter.tensors[FREQUENCIES].float()

    def of(self, network: str, scores: Sequence[float]) -> Adapter:
        """Plain LoRA for the layers of `UNET` or `VAE`, with Mᵀ · A in the place of A.

        Args:
            network: one of the two.
            scores: blur and noise, in [0, 1].
        """
        part: Adapter = {UNET: self.unet, VAE: self.vae}[network]
        if network not in self.conditioners:
            return part
        matrices = self.matrices(network, torch.tensor([scores], dtype=torch.float32))[0]
        mixed = dict(part.tensors)
        for layer in part.modules:
            down = part.tensors[f"{layer}.lora_A.weight"]
            matrix = matrices[block_of(network, layer)].to(down)
            mixed[f"{layer}.lora_A.weight"] = (matrix.T @ down.flatten(1)).view(down.shape)
        return replace(part, tensors=mixed)

    @torch.no_grad()
    def matrices(self, network: str, scores: Tensor) -> Tensor:
        """M of each block: scores (N, 2) -> (N, blocks, rank, rank), on the CPU."""
        answer: Tensor = self.conditioners[network](fourier_features(scores, self._frequencies))
        return answer


def _part(adapter: Adapter, network: str, device: torch.device) -> Adapter:
    """What an adapter of several networks has for one, whose layers then have the names that they have in it."""
    mark = f"{network}."
    tensors = {key.removeprefix(mark): value.to(device) for key, value in adapter.tensors.items() if key.startswith(mark)}
    part = Adapter(adapter.name, tensors, adapter.info)
    rank = max(part.ranks.values(), default=adapter.info.rank)
    info = replace(adapter.info, rank=rank, alpha=adapter.info.alpha * rank / (adapter.info.rank or 1))  # the same factor
    return replace(part, info=info)


def _conditioner_of(adapter: Adapter, network: str) -> Conditioner:
    """The conditioner of a network, frozen, with the adapter's weights."""
    mark = f"{network}{CONDITIONER}."
    tensors = {key.removeprefix(mark): value for key, value in adapter.tensors.items() if key.startswith(mark)}
    try:
        conditioner = Conditioner(len(tensors["embedding.weight"]), math.isqrt(len(tensors["fuse.weight"])))
        conditioner.load_state_dict(tensors)
    except (KeyError, RuntimeError) as fault:
        raise _not_ours(adapter) from fault
    return conditioner.requires_grad_(False).eval()


def _not_ours(adapter: Adapter) -> ModelError:
    message = f"the {adapter.name} adapter is not S3Diff's: it has nothing that makes weights of a picture's scores"
    return ModelError(message, "take one that `srcli models import` or `srcli train-semantic` made for a model of this family")
