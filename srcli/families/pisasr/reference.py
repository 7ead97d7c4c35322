"""The reference's checkpoint, `pisa_sr.pkl`, as two adapters of our own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srcli.errors import ModelError
from srcli.families.pisasr import PIXEL, SEMANTIC, TARGETS
from srcli.networks.adapters import Adapter, AdapterInfo, check_fit
from srcli.networks.saved_adapters import save_adapter
from srcli.networks.unet import FixedPromptUNet
from srcli.store.weights import load_pickle

REFERENCE_ALPHA = 8
"""peft's default, which the reference code uses and its checkpoint does not store."""
_NAMES = {"pix": PIXEL, "sem": SEMANTIC}
_LOGGER = logging.getLogger("srcli")


def convert(files: Sequence[Path], base_files: Sequence[Path], out: Path, base: str, licence: str) -> dict[str, Path]:
    """Convert the reference's checkpoint into two adapters; see `srcli.families.convert_checkpoint`.

    Of the base its UNet's `config.json` alone is read, and the layers that it tells of are compared before anything is written.
    """
    (file,), (base_file,) = files, base_files
    adapters = read_reference(load_pickle(file), file, base, licence)
    unet = _unet_without_weights(base_file)
    wanted = {name for name, module in unet.named_modules() if re.fullmatch(TARGETS, name) and hasattr(module, "weight")}
    for adapter in adapters:
        check_fit(unet, adapter)
        left_out = sorted(wanted.difference(adapter.modules))
        if left_out:
            words = "`%s` leaves out %d of %d layers in its %s adapter, among them `%s`: is it complete?"
            _LOGGER.warning(words, file, len(left_out), len(wanted), adapter.name, left_out[0])
    return {adapter.name: save_adapter(adapter, out / adapter.name) for adapter in adapters}


def _unet_without_weights(file: Path) -> FixedPromptUNet:
    """The UNet of a `config.json`: its layers and their shapes, but no memory for weights."""
    try:
        with torch.device("meta"):
            return FixedPromptUNet(json.loads(file.read_text(encoding="utf-8")))
    except Exception as error:  # nearly anything, from a configuration that makes no sense
        message = f"`{file}` describes no usable UNet: {error}"
        raise ModelError(message, "use the base that the adapters were trained on") from error


def read_reference(checkpoint: Mapping[str, Any], file: Path, base: str = "", licence: str = "") -> list[Adapter]:
    """The pixel and the semantic adapter of a loaded reference checkpoint.

    Its keys are `<module>.lora_A.default_<part>_<pix|sem>.weight`, where the part (encoder, decoder, others) only groups modules.

    Raises:
        ModelError: keys are missing.
    """
    try:
        state = {str(key): value for key, value in checkpoint["state_dict_unet"].items()}
        ranks = {short: int(checkpoint[f"lora_rank_unet_{short}"]) for short in _NAMES}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"`{file}` is not a PiSA-SR checkpoint: {type(error).__name__} {error}"
        raise ModelError(message, "it should hold `state_dict_unet` and the two ranks, as `pisa_sr.pkl` does") from error
    adapters = []
    for short, name in _NAMES.items():
        info = AdapterInfo(ranks[short], REFERENCE_ALPHA, base, name, 0, licence)
        adapters.append(Adapter(name, _reference_tensors(state, short), info))
        if not adapters[-1].tensors:
            raise ModelError(f"`{file}` holds no {name} adapter", "take the complete `pisa_sr.pkl`")
    return adapters


def _reference_tensors(state: Mapping[str, Any], short: str) -> dict[str, Tensor]:
    tensors = {}
    for key, value in state.items():
        for half in "AB":
            module, mark, rest = key.partition(f".lora_{half}.default_")
            if mark and rest.endswith(f"_{short}.weight") and isinstance(value, Tensor):
                tensors[f"{module}.lora_{half}.weight"] = value.float()
    return tensors
