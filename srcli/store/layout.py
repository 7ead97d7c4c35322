"""Which files of a model in diffusers' layout matter, on disk or in a repository's list.

A part's weights come in full (`model.safetensors`) or as a half-precision variant (`model.fp16.safetensors`), each in one file
or in numbered shards with an index. One of the two is enough: networks are computed in the precision that is asked for, and half
precision is what most run in. Nothing here needs torch or a network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from srcli.rows.base import INDEX_FILE

PROMPTS_FILE = "prompt_embeddings.safetensors"
"""What models without a text encoder have in its place."""
PARTS = ("unet", "tail", "vae", "text_encoder", "tokenizer", "scheduler")
"""The folders of a diffusers model that a restorer or its training may need."""
HALF = "fp16"
"""The variant of half precision, as diffusers and transformers call it."""
_WEIGHT_PARTS = ("unet", "tail", "vae", "text_encoder")
_FULL_WEIGHTS = re.compile(r"[^.]+\.safetensors")
_HALF_WEIGHTS = re.compile(rf"[^.]+\.{HALF}(-\d+-of-\d+)?\.safetensors")
_FULL_INDEX, _HALF_INDEX = ".safetensors.index.json", f".safetensors.index.{HALF}.json"
_TOKENIZER_SUFFIXES = (".json", ".txt", ".model")
_SETTINGS = {"scheduler": ("scheduler_config.json",), "tokenizer": ("merges.txt", "vocab.json")}
"""What a part cannot do without; of a tokenizer, where it is not in one file (`tokenizer.json`, `*.model`)."""


def needed_files(names: Iterable[str]) -> list[str]:
    """Of all files of a repository those that srcli needs: never two precisions of a part, a pickle or a whole-model file.

    Args:
        names: paths in the repository, with `/`.

    Returns:
        Sorted paths; the half-precision variant of a part's weights where there is one, else the full weights.
    """
    wanted = [name for name in names if name in (INDEX_FILE, PROMPTS_FILE)]
    for part in PARTS:
        inside = [name.partition("/")[2] for name in names if name.startswith(f"{part}/") and name.count("/") == 1]
        wanted += [f"{part}/{name}" for name in _needed_of_part(part, inside)]
    return sorted(wanted)


def _needed_of_part(part: str, names: list[str]) -> list[str]:
    if part == "tokenizer":
        return [name for name in names if name.endswith(_TOKENIZER_SUFFIXES)]
    plain = [name for name in names if name.endswith(".json") and ".index." not in name]
    if part not in _WEIGHT_PARTS:
        return plain
    half = [name for name in names if _HALF_WEIGHTS.fullmatch(name)]
    if half:
        return plain + half + [name for name in names if name.endswith(_HALF_INDEX)]
    full = [name for name in names if _FULL_WEIGHTS.fullmatch(name)]
    return plain + full + [name for name in names if name.endswith(_FULL_INDEX)]


def variant_of(part_folder: Path) -> str | None:
    """What diffusers and transformers must be told as `variant` to load a part: `fp16` where the full weights are not whole."""
    full = _lacking_weights(part_folder, _FULL_WEIGHTS, _FULL_INDEX)
    return HALF if full and not _lacking_weights(part_folder, _HALF_WEIGHTS, _HALF_INDEX) else None


def weight_files(part_folder: Path) -> list[Path]:
    """The files of a part's weights, in the precision that `variant_of` tells; all shards where there is an index.

    Raises:
        OSError, ValueError: there are none, or an index makes no sense.
    """
    weights, index = (_HALF_WEIGHTS, _HALF_INDEX) if variant_of(part_folder) else (_FULL_WEIGHTS, _FULL_INDEX)
    if lacking := _lacking_weights(part_folder, weights, index):
        raise FileNotFoundError(f"`{part_folder.name}/{lacking[0]}` is missing")
    for file in part_folder.glob(f"*{index}"):
        names = json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
        return [part_folder / name for name in sorted(set(names))]
    return sorted(path for path in part_folder.glob("*.safetensors") if weights.fullmatch(path.name))


def lacking_parts(names: Iterable[str]) -> list[str]:
    """What a repository with these files lacks to be a base that srcli can use."""
    files = needed_files(names)
    wanted = [INDEX_FILE, "unet/config.json", "vae/config.json"]
    lacking = [name for name in wanted if name not in files]
    if not any(name.startswith("unet/") and name.endswith(".safetensors") for name in files):
        lacking.append("unet/*.safetensors")
    return lacking


def lacking_files(folder: Path) -> list[str]:
    """What a snapshot needs and has not: each part that its index declares, with its settings, its vocabulary and its weights.

    Weights may be of either precision. An empty file counts as missing.
    """
    try:
        declared = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [INDEX_FILE]
    needed = [part for part in PARTS if isinstance(declared, dict) and (declared.get(part) or [None])[0] is not None]
    if "unet" not in needed:
        return ["unet"]
    lacking = [f"{part}/{name}" for part in needed for name in _lacking_settings(folder / part)]
    for part in set(needed).intersection(_WEIGHT_PARTS):
        full = _lacking_weights(folder / part, _FULL_WEIGHTS, _FULL_INDEX)
        if full and _lacking_weights(folder / part, _HALF_WEIGHTS, _HALF_INDEX):
            lacking += [f"{part}/{name}" for name in full]
    return sorted(lacking)


def _lacking_settings(part_folder: Path) -> list[str]:
    """What a part lacks to be set up, weights aside."""
    names = _SETTINGS.get(part_folder.name, ("config.json",))
    alone = [part_folder / "tokenizer.json", *part_folder.glob("*.model")] if part_folder.name == "tokenizer" else []
    if any(map(_is_whole, alone)):
        return []
    return [name for name in names if not _is_whole(part_folder / name)]


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _lacking_weights(part_folder: Path, weights: re.Pattern[str], index: str) -> list[str]:
    """What one precision of a part's weights lacks: shards, or all of it."""
    names = {path.name for path in part_folder.glob("*.safetensors") if weights.fullmatch(path.name) and _is_whole(path)}
    wanted: set[str] = set()
    for file in part_folder.glob(f"*{index}"):
        try:
            wanted.update(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return [file.name]
    if not wanted and not names:
        return ["*.safetensors"]
    return sorted(wanted - names)
