"""Which files a copy of a base must have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srcli.store.layout import lacking_files

UNET = "unet/diffusion_pytorch_model.safetensors"


def base(folder: Path, *names: str) -> Path:
    """A base of a UNet, a tokenizer and a noise schedule, with these files of one byte; an empty one is written `-NAME`."""
    parts = ("unet", "tokenizer", "scheduler")
    (folder / "model_index.json").write_text(json.dumps({part: ["library", "Class"] for part in parts}))
    for name in names:
        path = folder / name.removeprefix("-")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if name.startswith("-") else b"x")
    return folder


REST = ("unet/config.json", UNET, "scheduler/scheduler_config.json")


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("tokenizer.json",), ("spiece.model", "tokenizer_config.json")])
def test_a_tokenizer_of_any_kind(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert lacking_files(base(tmp_path, *REST, *(f"tokenizer/{name}" for name in names))) == []


@pytest.mark.parametrize(
    ("names", "lacking"),
    [
        (("tokenizer_config.json",), ["merges.txt", "vocab.json"]),
        (("vocab.json", "special_tokens_map.json"), ["merges.txt"]),
        (("merges.txt",), ["vocab.json"]),
    ],
)
def test_a_tokenizer_without_its_words(tmp_path: Path, names: tuple[str, ...], lacking: list[str]) -> None:
    folder = base(tmp_path, *REST, *(f"tokenizer/{name}" for name in names))
    assert lacking_files(folder) == [f"tokenizer/{name}" for name in lacking]


def test_settings_are_asked_for_by_name_and_empty_files_count_as_missing(tmp_path: Path) -> None:
    base(tmp_path, "unet/other.json", f"-{UNET}", "scheduler/config.json", "tokenizer/vocab.json", "-tokenizer/merges.txt")
    assert lacking_files(tmp_path) == [
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "unet/*.safetensors",
        "unet/config.json",
    ]
