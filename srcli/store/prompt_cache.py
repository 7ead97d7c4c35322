"""Embeddings of prompts, kept on disk: with one fixed prompt a picture needs no text encoder, and none is loaded.

A file for each base and prompt lies in the user's cache folder and may be deleted at any time. Its name is made of what the
embedding depends on: of a base from the hub the repository, its commit and the precision of the encoder's file; of a folder its
path, and names, sizes and dates of the encoder's and tokenizer's files.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from srcli.disk import write_whole
from srcli.errors import ModelError
from srcli.store.layout import variant_of
from srcli.store.weights import load_tensors

if TYPE_CHECKING:
    from torch import Tensor

_LOGGER = logging.getLogger("srcli")
_KEY = "embedding"
_VERSION = 1
"""To be raised when embeddings are computed in another way."""


def cache_folder() -> Path:
    """Where the embeddings lie; may not exist."""
    return platformdirs.user_cache_path("srcli") / "prompts"


def read_embedding(base: Path, prompt: str) -> Tensor | None:
    """The embedding of a prompt, if it is kept.

    Args:
        base: the base's folder.
        prompt: any text.

    Returns:
        (tokens, width), float32, on the CPU; None where there is none, or it cannot be read (which is told).
    """
    path = _path(base, prompt)
    if not path.is_file():
        return None
    try:
        return load_tensors(path)[0][_KEY].float()
    except ModelError as fault:
        _LOGGER.warning("the kept prompt embedding is computed anew: %s", fault.message)
        return None


def keep_embedding(base: Path, prompt: str, embedding: Tensor) -> None:
    """Keep an embedding for later; a cache that cannot be written is told and does no harm.

    Args:
        base: the base's folder.
        prompt: any text.
        embedding: (tokens, width).
    """
    from safetensors.torch import save

    path = _path(base, prompt)
    data = save({_KEY: embedding.detach().float().cpu().contiguous()}, {"prompt": prompt, "base": str(base)})
    try:
        write_whole(path, data)
    except OSError as fault:
        _LOGGER.warning("cannot keep the prompt embedding in `%s`: %s; it is computed anew each time", path, fault.strerror)


def _path(base: Path, prompt: str) -> Path:
    facts = json.dumps([_VERSION, prompt, *_identity(base)])
    return cache_folder() / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.safetensors"


def _identity(base: Path) -> list[str]:
    """What tells one text encoder from another without reading its weights."""
    base = base.resolve()
    variant = variant_of(base / "text_encoder") or "full"
    if base.parent.name == "snapshots":  # in the hub's cache, where a commit never changes; dates do, when the cache is copied
        return [base.parent.parent.name, base.name, variant]
    files = sorted(path for part in ("text_encoder", "tokenizer") for path in (base / part).glob("*") if path.is_file())
    states = [(path, path.stat()) for path in files]
    return [str(base), variant, *(f"{path.relative_to(base)} {state.st_size} {state.st_mtime_ns}" for path, state in states)]
