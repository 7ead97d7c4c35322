"""Prompt embeddings that are kept on disk, so that no text encoder is loaded for a known prompt."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from srcli.errors import ModelError
from srcli.networks import backbone
from srcli.networks.backbone import PromptEncoder, keep_prompts, prompt_embedding
from srcli.store.prompt_cache import cache_folder, read_embedding

PISA_BASE = Path(__file__).parent / "data/pisa/base"
COMMIT = "c0ffee" * 6 + "c0de"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PISA_BASE, tmp_path / "base"))


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The bases whose text encoder was loaded, in order."""
    loaded: list[Path] = []
    load = backbone._load_text_encoder

    def counting(base: Path, device: torch.device) -> tuple[object, object]:
        loaded.append(base)
        return load(base, device)

    monkeypatch.setattr(backbone, "_load_text_encoder", counting)
    return loaded


def fresh(base: Path, prompt: str) -> Tensor:
    """What the text encoder says, without any cache."""
    tokenizer, encoder = backbone._load_text_encoder(base, torch.device("cpu"))
    tokens = tokenizer([prompt], max_length=tokenizer.model_max_length, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(tokens)[0].float()


def test_an_embedding_is_computed_once(base: Path, encoders: list[Path]) -> None:
    first = prompt_embedding(base, "")
    assert torch.equal(first, fresh(base, ""))
    encoders.clear()
    assert torch.equal(prompt_embedding(base, ""), first)
    assert not encoders
    other = prompt_embedding(base, "a photo")
    assert encoders == [base]
    assert not torch.equal(other, first)
    assert len(list(cache_folder().iterdir())) == 2


def test_prompts_are_kept_with_one_encoder_and_serve_training(base: Path, encoders: list[Path]) -> None:
    keep_prompts(base, ["", "good", "bad", ""])
    keep_prompts(base, ["good", ""])
    assert encoders == [base]
    encoder = PromptEncoder(base, torch.device("cpu"))
    known = encoder(["bad", "good"])
    assert not encoder.loaded
    captions = encoder(["bad", "a caption"])
    assert encoder.loaded
    assert torch.equal(captions[0], known[0])
    assert read_embedding(base, "a caption") is None  # captions are too many to be kept
    assert torch.equal(captions[1:], fresh(base, "a caption"))


def test_another_encoder_has_another_embedding(base: Path, encoders: list[Path]) -> None:
    prompt_embedding(base, "")
    config = base / "text_encoder" / "config.json"
    os.utime(config, ns=(1, 1))
    prompt_embedding(base, "")
    assert encoders == [base, base]


def test_the_hubs_copies_are_known_by_their_commit(tmp_path: Path, encoders: list[Path]) -> None:
    name = f"models--a--b/snapshots/{COMMIT}"
    first = Path(shutil.copytree(PISA_BASE, tmp_path / "one" / name))
    embedding = prompt_embedding(first, "")
    copy = Path(shutil.copytree(first, tmp_path / "two" / name))
    os.utime(copy / "text_encoder" / "model.safetensors", ns=(1, 1))
    assert torch.equal(prompt_embedding(copy, ""), embedding)
    other = Path(shutil.copytree(first, tmp_path / "one" / "models--a--b/snapshots" / COMMIT[::-1]))
    prompt_embedding(other, "")
    assert encoders == [first, other]


def test_a_damaged_embedding_is_told_and_computed_anew(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = prompt_embedding(base, "")
    (path,) = cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING, "srcli"):
        assert torch.equal(prompt_embedding(base, ""), before)
    assert "the kept prompt embedding is computed anew: " in caplog.text
    assert "hint" not in caplog.text
    kept = read_embedding(base, "")
    assert kept is not None
    assert torch.equal(kept, before[0])


def test_a_closed_cache_is_told_and_does_no_harm(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "srcli"):
        assert torch.equal(prompt_embedding(base, ""), fresh(base, ""))
    assert "cannot keep the prompt embedding" in caplog.text
    assert "Not a directory" in caplog.text


def test_a_base_without_a_text_encoder_says_so(base: Path) -> None:
    shutil.rmtree(base / "text_encoder")
    with pytest.raises(ModelError, match="has no usable text encoder"):
        keep_prompts(base, [""])
