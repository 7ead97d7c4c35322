"""The reference's checkpoints, `s3diff.pkl` and `de_net.pth`, as two adapters of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srcli.errors import ModelError
from srcli.families.s3diff import ESTIMATOR, SEMANTIC
from srcli.families.s3diff.estimator import Estimator
from srcli.families.s3diff.modulation import CONDITIONER, FREQUENCIES, UNET, VAE, Modulation
from srcli.networks.adapters import Adapter, AdapterInfo, check_fit
from srcli.networks.filling import read_json, reading
from srcli.networks.saved_adapters import save_adapter
from srcli.networks.unet import FixedPromptUNet
from srcli.networks.vae import Vae
from srcli.store.weights import load_pickle

REFERENCE_ALPHA = 8
"""peft's default, which the reference code uses and its checkpoint does not store."""
_MLPS = {"degradation": "de_mlp", "block": "block_mlp", "fuse": "fuse_mlp"}
"""Our names of a conditioner's layers, and theirs."""


def convert(files: Sequence[Path], base_files: Sequence[Path], out: Path, base: str, licence: str) -> dict[str, Path]:
    """Convert the reference's checkpoints; see `srcli.families.convert_checkpoint`. Which is which is seen from what they hold.

    Of the base the `config.json` of its UNet and its autoencoder are read, and the layers that they tell of are compared before
    anything is written.
    """
    adapters: dict[str, Adapter] = {}
    for file in files:
        content = load_pickle(file)
        read = read_estimator if any(str(key).startswith("conv_first.") for key in content) else read_reference
        adapter = read(content, file, base, licence)
        if adapter.name in adapters:
            raise ModelError(f"two files hold a {adapter.name} adapter, `{file}` for one", "give each once")
        adapters[adapter.name] = adapter
    if SEMANTIC in adapters:
        _check_fit(adapters[SEMANTIC], *base_files)
    return {name: save_adapter(adapter, out / name) for name, adapter in adapters.items()}


def read_reference(checkpoint: Mapping[str, Any], file: Path, base: str = "", licence: str = "") -> Adapter:
    """What `s3diff.pkl` holds, as one adapter of encoder, UNet and conditioners.

    It has the largest rank and that one's factor; where the factor of a network is another one, that is in its `fuse`.

    Raises:
        ModelError: keys are missing, or values that are no tensors.
    """
    try:
        ranks = {UNET: int(checkpoint["rank_unet"]), VAE: int(checkpoint["rank_vae"])}
        tensors: dict[str, Tensor] = {FREQUENCIES: _plain(checkpoint["w"])}
        for network in ranks:
            tensors |= _lora(checkpoint[f"state_dict_{network}"], network)
            embedding = checkpoint["state_embeddings"][f"state_dict_{network}_block"]["weight"]
            tensors[f"{network}{CONDITIONER}.embedding.weight"] = _plain(embedding)
            for own, theirs in _MLPS.items():
                for key, value in checkpoint[f"state_dict_{network}_{theirs}"].items():
                    tensors[f"{network}{CONDITIONER}.{own}.{key.rpartition('.')[2]}"] = _plain(value)
        for network, rank in ranks.items():
            for leaf in ("weight", "bias"):
                tensors[f"{network}{CONDITIONER}.fuse.{leaf}"] *= max(ranks.values()) / rank
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"`{file}` is not an S3Diff checkpoint: {type(error).__name__} {error}"
        raise ModelError(message, "give `s3diff.pkl` and `de_net.pth`, in which S3Diff's authors publish it") from error
    return Adapter(SEMANTIC, tensors, AdapterInfo(max(ranks.values()), REFERENCE_ALPHA, base, SEMANTIC, 0, licence))


def read_estimator(checkpoint: Mapping[str, Any], file: Path, base: str = "", licence: str = "") -> Adapter:
    """What `de_net.pth` holds, as an adapter of whole tensors.

    Raises:
        ModelError: they are no estimator's.
    """
    tensors = {str(key): _plain(value) for key, value in checkpoint.items() if isinstance(value, Tensor)}
    try:
        Estimator.of_tensors(tensors)
    except ModelError as fault:
        raise ModelError(f"`{file}`: {fault.message}", fault.hint) from fault
    return Adapter(ESTIMATOR, tensors, AdapterInfo(0, 0, "", ESTIMATOR, 0, licence))


def _lora(state: Mapping[str, Any], network: str) -> dict[str, Tensor]:
    """The keys of peft have the adapter's name before the last word: `….lora_A.default.weight`."""
    names = {key: re.sub(r"(lora_[AB])\.[^.]+\.", r"\1.", key) for key in state}
    return {f"{network}.{name}": _plain(state[key]) for key, name in names.items()}


def _plain(value: Any) -> Tensor:
    """A tensor of a checkpoint without what is for training. Raises: AttributeError: it is none."""
    tensor: Tensor = value.detach().float()
    return tensor


def _check_fit(adapter: Adapter, unet_file: Path, vae_file: Path) -> None:
    """Raises: ModelError: the adapter is not whole, or does not fit the base of these configurations."""
    modulation = Modulation(adapter, torch.device("cpu"))
    folder = unet_file.parents[1]
    with reading(folder, UNET), torch.device("meta"):
        unet = FixedPromptUNet(read_json(unet_file))
    with reading(folder, VAE), torch.device("meta"):
        vae = Vae(read_json(vae_file))
    check_fit(unet, modulation.unet)
    check_fit(vae, modulation.vae)
