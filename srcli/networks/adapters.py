"""Adapters: LoRA sets on a UNet. Attach for training, merge for inference, save, load.

A LoRA layer adds (alpha / rank) · B · A to a frozen weight (Hu et al. 2021, eq. 3); for a convolution A has the kernel's
shape and B is 1x1. An adapter's file is safetensors in peft's layout, with `adapter_config.json` beside it for peft's own
loader; all that srcli needs is in the file's header.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srcli.disk import write_whole
from srcli.errors import ModelError, UsageError, joined_faults
from srcli.store.adapter_files import ADAPTER_FILE
from srcli.store.weights import load_tensors

_LOGGER = logging.getLogger("srcli")
TARGETS = r"(conv_in|conv_out|.*\.(to_q|to_k|to_v|to_out\.0|conv\d*|conv_shortcut|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2))"
"""The UNet's layers that PiSA-SR adapts: all convolutions and all attention and MLP projections, not the time embedding."""
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter's file says of itself."""

    rank: int
    alpha: float
    base: str = ""
    """The base it was trained on."""
    stage: str = ""
    """`pixel` or `semantic`."""
    steps: int = 0
    licence: str = ""

    def to_metadata(self) -> dict[str, str]:
        return {key: str(value) for key, value in self.__dict__.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> AdapterInfo:
        """Raises: ModelError: rank or alpha are missing or no numbers."""
        try:
            return cls(
                rank=int(metadata["rank"]),
                alpha=float(metadata["alpha"]),
                base=metadata.get("base", ""),
                stage=metadata.get("stage", ""),
                steps=int(metadata.get("steps", "0")),
                licence=metadata.get("licence", ""),
            )
        except (KeyError, ValueError) as error:
            message = f"`{path}` does not say its rank and alpha"
            raise ModelError(message, "take a file that `srcli train-pixel` or `srcli models import` wrote") from error


@dataclass(frozen=True)
class Adapter:
    """A LoRA set in memory.

    Attributes:
        name: under which it is attached.
        tensors: `<module>.lora_A.weight` and `<module>.lora_B.weight`, float32.
        info: rank, alpha and origin.
    """

    name: str
    tensors: dict[str, Tensor]
    info: AdapterInfo

    @property
    def modules(self) -> list[str]:
        return sorted({key.rsplit(".lora_", 1)[0] for key in self.tensors})


def attach(unet: Any, name: str, rank: int, alpha: float, targets: str = TARGETS) -> list[torch.nn.Parameter]:
    """Add a fresh, trainable adapter to `unet` (A Gaussian, B zero), float32, and return its parameters; all else is frozen.

    Raises:
        UsageError: `targets`, a regular expression, is the whole name of no layer that can be adapted.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets)
    try:
        _add(unet, config, name)
    except ValueError as error:
        raise UsageError(f"`targets` fits no layer of the UNet: `{targets}`", "leave it out for PiSA-SR's own") from error
    marks = (f"lora_A.{name}.", f"lora_B.{name}.")
    parameters = []
    for key, parameter in unet.named_parameters():
        mine = any(mark in key for mark in marks)
        parameter.requires_grad_(mine)
        if mine:
            parameter.data = parameter.data.float()
            parameters.append(parameter)
    return parameters


def fill(unet: Any, adapter: Adapter, fresh: AdapterInfo) -> None:
    """Give the attached adapter `adapter.name`, described by `fresh`, the weights of a trained one.

    Layers that the trained one leaves alone stay as they were attached, and change nothing yet.

    Raises:
        ModelError: another rank or alpha, layers that the attached one does not adapt, or others than the UNet's.
    """
    if (adapter.info.rank, adapter.info.alpha) != (fresh.rank, fresh.alpha):
        found = f"rank {adapter.info.rank} and alpha {adapter.info.alpha:g}"
        hint = f"give it those: `--rank {adapter.info.rank} --alpha {adapter.info.alpha:g}`"
        raise ModelError(f"the adapter to start from has {found}, the recipe {fresh.rank} and {fresh.alpha:g}", hint)
    check_fit(unet, adapter)
    attached = extract(unet, adapter.name, fresh)
    if more := sorted(set(adapter.modules) - set(attached.modules)):
        raise ModelError(
            f"the adapter to start from adapts layers that the recipe's `targets` leave out: `{more[0]}`, {len(more)} in all",
            "give the `--targets` it was trained with, or more",
        )
    if new := sorted(set(attached.modules) - set(adapter.modules)):
        _LOGGER.warning("%d layers that the adapter to start from leaves alone start from nothing: %s", len(new), _listed(new))
    restore_state(unet, replace(adapter, tensors=attached.tensors | adapter.tensors))


def attach_frozen(unet: Any, adapter: Adapter) -> None:
    """Add a trained adapter to `unet` beside its weights, in float32 and frozen.

    Raises:
        ModelError: it does not fit.
    """
    from peft import LoraConfig

    check_fit(unet, adapter)
    _add(unet, LoraConfig(r=adapter.info.rank, lora_alpha=adapter.info.alpha, target_modules=adapter.modules), adapter.name)
    restore_state(unet, adapter)
    for key, parameter in unet.named_parameters():
        if f".{adapter.name}." in key:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(False)


def _add(unet: Any, config: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # two adapters are what we want
        unet.add_adapter(config, adapter_name=name)


def use_adapters(unet: Any, names: Sequence[str]) -> None:
    """Make `names` the attached adapters that work; none switches all off. Which parameters want gradients is undefined after."""
    if not names:
        unet.disable_adapters()
        return
    unet.enable_adapters()
    unet.set_adapters(list(names))


def extract(unet: Any, name: str, info: AdapterInfo) -> Adapter:
    """The attached adapter `name` as it is now, copied to the CPU in float32."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(unet, adapter_name=name)
    return Adapter(name, {key: value.detach().float().cpu().clone() for key, value in state.items()}, info)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + " …" * (len(names) > 4)


def restore_state(unet: Any, adapter: Adapter) -> None:
    """Put an adapter's values into the attached adapter of the same name."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(unet, adapter.tensors, adapter_name=adapter.name)


def merge(unet: Any, adapters: Sequence[Adapter]) -> None:
    """Add the adapters to the weights of `unet`, W + Σ (alpha / rank) · B · A; computed in the weights' dtype: float32, please.

    Raises:
        ModelError: an adapter does not fit the UNet; every such layer is named.
    """
    from peft import LoraConfig

    for adapter in adapters:
        check_fit(unet, adapter)
        config = LoraConfig(r=adapter.info.rank, lora_alpha=adapter.info.alpha, target_modules=adapter.modules)
        unet.add_adapter(config, adapter_name=adapter.name)
        restore_state(unet, adapter)
        unet.fuse_lora(adapter_names=[adapter.name])
        unet.unload_lora()
    unet.requires_grad_(False)


def warn_of_strange_base(adapter: Adapter, bases: Sequence[str]) -> None:
    """Warn where an adapter says that it was trained on another base than these names of one: layers may fit by chance.

    Only the last parts of names are compared, since mirrors and copies in folders are usually called alike.
    """
    own, known = _last(adapter.info.base), {_last(name) for name in bases if name}
    if own and known and own not in known:
        told = "the %s adapter was trained on `%s` and is used on `%s`: where these are not the same, pictures are spoilt"
        _LOGGER.warning(told, adapter.name, adapter.info.base, bases[0])


def _last(name: str) -> str:
    """In the hub's cache, `…/models--OWNER--NAME/snapshots/COMMIT`, a folder's name is its commit."""
    parts = name.rstrip("/").split("/")
    return parts[-3].rpartition("--")[2] if len(parts) > 2 and parts[-2] == "snapshots" else parts[-1]


def check_fit(unet: Any, adapter: Adapter) -> None:
    """Raises: ModelError: layers that the UNet lacks, halves that are missing, shapes that differ; all of them."""
    layers = {name: module.weight for name, module in unet.named_modules() if hasattr(module, "weight")}
    faults = []
    for name in adapter.modules:
        down, up = (adapter.tensors.get(f"{name}.lora_{half}.weight") for half in "AB")
        weight = layers.get(name)
        if weight is None:
            faults.append(f"the base has no layer `{name}`")
        elif down is None or up is None:
            faults.append(f"`{name}` lacks one of lora_A and lora_B")
        elif (up.shape[0], *down.shape[1:]) != tuple(weight.shape) or not down.shape[0] == up.shape[1] == adapter.info.rank:
            shapes = f"A {tuple(down.shape)}, B {tuple(up.shape)}, layer {tuple(weight.shape)}, rank {adapter.info.rank}"
            faults.append(f"`{name}` has other shapes: {shapes}")
    if faults:
        more = [f"… and {len(faults) - 10} more"] if len(faults) > 10 else []
        message = joined_faults(f"the adapter `{adapter.name}` does not fit the base", faults[:10] + more)
        raise ModelError(message, "use the base that the adapter was trained on")


def save_adapter(adapter: Adapter, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `adapter_model.safetensors` and `adapter_config.json` into `folder`; returns the former's path."""
    from peft import LoraConfig
    from peft.utils import CONFIG_NAME
    from safetensors.torch import save

    tensors = {_PREFIX + key: value.to(dtype).contiguous() for key, value in sorted(adapter.tensors.items())}
    write_whole(folder / ADAPTER_FILE, save(tensors, {"format": "pt", **adapter.info.to_metadata()}))
    config = LoraConfig(
        r=adapter.info.rank,
        lora_alpha=adapter.info.alpha,
        target_modules=adapter.modules,
        base_model_name_or_path=adapter.info.base,
        inference_mode=True,
    )
    # not its own `save_pretrained`, which writes sets in another order in each process
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_whole(folder / CONFIG_NAME, f"{json.dumps(settings, indent=2, sort_keys=True)}\n".encode())
    return folder / ADAPTER_FILE


def load_adapter(path: Path, name: str) -> Adapter:
    """Read an adapter's file.

    Raises:
        ModelError: damaged, not an adapter, or without rank and alpha.
    """
    tensors, metadata = load_tensors(path)
    stripped = {key.removeprefix(_PREFIX): value.float() for key, value in tensors.items()}
    strange = [key for key in stripped if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
    if strange or not stripped:
        raise ModelError(f"`{path}` is not an adapter in peft's format", "its keys end in `.lora_A.weight`, `.lora_B.weight`")
    return Adapter(name, stripped, AdapterInfo.from_metadata(metadata, path))
