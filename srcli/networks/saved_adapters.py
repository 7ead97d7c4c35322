"""Files of adapters, and what they say of their origin.

An adapter's file is safetensors in peft's layout: `base_model.model.<layer>.lora_A.weight` and `.lora_B.weight`, and whole
tensors as peft's `modules_to_save`, `base_model.model.<parameter>`. `adapter_config.json` beside it is for peft's own loader
(which has another idea of LoRA on grouped convolutions, and refuses ours); all that srcli needs is in the file's header.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from srcli.console import counted
from srcli.disk import write_whole
from srcli.errors import ModelError, joined_faults
from srcli.networks.adapters import HALVES, Adapter, AdapterInfo
from srcli.store.adapter_files import ADAPTER_FILE
from srcli.store.weights import load_tensors, sha256_of

_LOGGER = logging.getLogger("srcli")
_PREFIX = "base_model.model."


def save_adapter(adapter: Adapter, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `adapter_model.safetensors` and `adapter_config.json` into `folder`; returns the former's path.

    Whole tensors are float32 whatever `dtype` is: what was learnt is a small difference of them from the base's.
    """
    from peft import LoraConfig
    from peft.utils import CONFIG_NAME
    from safetensors.torch import save

    dtypes = {key: torch.float32 if key in adapter.full else dtype for key in sorted(adapter.tensors)}
    tensors = {  # copied, since a checkpoint's tensors may share memory, which the format does not allow
        _PREFIX + key: adapter.tensors[key].to(each, copy=True, memory_format=torch.contiguous_format)
        for key, each in dtypes.items()
    }
    write_whole(folder / ADAPTER_FILE, _in_order(save(tensors, {"format": "pt", **adapter.info.to_metadata()})))
    info, ranks = adapter.info, {name: rank for name, rank in adapter.ranks.items() if rank != adapter.info.rank}
    config = LoraConfig(
        r=info.rank,
        lora_alpha=info.alpha,
        rank_pattern=ranks,
        alpha_pattern={name: info.alpha * rank / info.rank for name, rank in ranks.items()},
        target_modules=adapter.modules,
        modules_to_save=sorted({key.rpartition(".")[0] for key in adapter.full}) or None,
        base_model_name_or_path=info.base,
        inference_mode=True,
    )
    # not its own `save_pretrained`, which writes sets in another order in each process
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_whole(folder / CONFIG_NAME, f"{json.dumps(settings, indent=2, sort_keys=True)}\n".encode())
    return folder / ADAPTER_FILE


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library writes them in another one each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_adapter(path: Path, name: str) -> Adapter:
    """Read an adapter's file.

    Raises:
        ModelError: damaged, not an adapter, without rank and alpha, or with what is no number.
    """
    tensors, metadata = load_tensors(path)
    strange = [key for key in tensors if not key.endswith(HALVES) and (not key.startswith(_PREFIX) or ".lora_" in key)]
    if strange or not tensors:
        hint = f"its keys end in `.lora_A.weight` and `.lora_B.weight`, or begin with `{_PREFIX}`"
        raise ModelError(f"`{path}` is not an adapter in peft's format", hint)
    stripped = {key.removeprefix(_PREFIX): value.float() for key, value in tensors.items()}
    broken = [key for key, value in stripped.items() if not value.isfinite().all()]
    if broken:
        message = f"`{path}` holds what is no number: {counted(len(broken), 'tensor')}, `{broken[0]}` for one"
        raise ModelError(message, "it is of a training that failed: take an earlier checkpoint, or train it anew at a lower rate")
    return Adapter(name, stripped, AdapterInfo.from_metadata(metadata, path))


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


def check_base_sum(adapter: Adapter, path: Path, base: Path, sha256: str) -> None:
    """Raises: ModelError: an adapter says that it was trained on another file than this base."""
    if adapter.info.base_sha256 not in ("", sha256):
        faults = [f"`{base}` has SHA-256 `{sha256}`", f"it was trained on `{adapter.info.base}`, `{adapter.info.base_sha256}`"]
        message = joined_faults(f"the {adapter.name} adapter `{path}` is of another network:", faults)
        raise ModelError(message, "use it with the very file that it was trained on; a copy in another format is another file")


def warn_of_another_beside(adapter: Adapter, other: str, path: Path) -> None:
    """Warn where an adapter says that it was trained on another one than the file `path`, which is called `other`."""
    if adapter.info.on_sha256 not in ("", sha256_of(path)):
        told = "the %s adapter was trained on another %s adapter than `%s`: the two may not go well together"
        _LOGGER.warning(told, adapter.name, other, path)
