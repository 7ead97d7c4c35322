"""Finding and checking a model's files."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from srcli.errors import ModelError
from srcli.rows.imported import IMPORTED_FILE, imported_folder, record_sums
from srcli.rows.lookup import find_model
from srcli.rows.spec import ModelSpec, read_row, replace_base
from srcli.store import weights
from srcli.store.weights import (
    adapter_path,
    base_folder,
    embedded_folder,
    load_pickle,
    load_tensors,
    read_metadata,
    sha256_of,
    waiting_adapters,
)


def spec_of(base: dict[str, Any], folder: Path = Path(), **more: Any) -> ModelSpec:
    row = {"family": "pisasr", "native_scale": 4, "base": base, "adapters": {"pixel": {"path": "p", "sha256": "0" * 64}}}
    return read_row("m", {**row, **more}, folder / "my models.toml")


# What is missing -----------------------------------------------------------------------------------------------------


def message_of(call: Any, *arguments: Any) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        call(*arguments)
    assert caught.value.exit_code == 2
    return caught.value.message, caught.value.hint


def test_a_missing_base_names_the_command(tmp_path: Path) -> None:
    spec = spec_of({"repo": "no/such"}, tmp_path)
    message, hint = message_of(base_folder, spec)
    assert message == "model `m` is not ready"
    assert hint == f"1 step is left:\n  1. srcli models fetch m --models-file '{spec.origin}'"
    message, hint = message_of(base_folder, replace_base(spec, "other/one"))
    assert message == "the base `other/one` is not downloaded"
    assert hint == "`srcli models fetch other/one` downloads it"


def test_what_is_to_be_imported_names_the_command() -> None:
    spec = find_model("pisa-sr")
    message, hint = message_of(base_folder, spec)
    assert message == "model `pisa-sr` is not ready"
    assert hint.splitlines() == [
        "2 steps are left:",
        "  1. srcli models fetch pisa-sr",
        "  2. to upscale, get `pisa_sr.pkl` from its authors, then: srcli models import pisa-sr pisa_sr.pkl",
    ]
    assert message_of(adapter_path, spec, "semantic") == (message, hint)


def test_an_imported_adapter_is_checked_against_the_record() -> None:
    folder = imported_folder("pisa-sr")
    path = folder / "pixel" / IMPORTED_FILE
    path.parent.mkdir(parents=True)
    save_file({"x": torch.arange(3.0)}, path)
    assert waiting_adapters(find_model("pisa-sr")) == ["pixel", "semantic"]
    record_sums(folder, {f"pixel/{IMPORTED_FILE}": sha256_of(path)})
    spec = find_model("pisa-sr")
    assert waiting_adapters(spec) == ["semantic"]
    assert adapter_path(spec, "pixel") == path
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    path.write_bytes(b"other")
    message, hint = message_of(adapter_path, spec, "pixel")
    assert "is not the file its row describes" in message
    assert "`srcli models import pisa-sr pisa_sr.pkl --force`" in hint
    (folder / "SHA256SUMS").write_bytes(b"\xff broken")
    assert waiting_adapters(find_model("pisa-sr")) == ["pixel", "semantic"]


# Local files ---------------------------------------------------------------------------------------------------------


def test_local_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of({"path": "base"}, tmp_path)
    with pytest.raises(ModelError, match="is no folder"):
        base_folder(spec)
    (tmp_path / "base/unet").mkdir(parents=True)
    (tmp_path / "base/unet/config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"lacks `vae/config.json`"):
        base_folder(spec)
    (tmp_path / "base/vae").mkdir()
    (tmp_path / "base/vae/config.json").write_text("{}")
    assert base_folder(spec) == tmp_path / "base"
    monkeypatch.setattr(weights, "BUILTIN", tmp_path)
    assert base_folder(spec_of({"embedded": "base"})) == embedded_folder("base") == tmp_path / "base"
    with pytest.raises(ModelError, match="no model `nope` ships with srcli") as caught:
        embedded_folder("nope")
    assert "`base`" in caught.value.hint


def test_adapter_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(3.0)}, path, {"rank": "4"})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of(path) == digest
    adapters = {
        "pixel": {"path": "a.safetensors", "sha256": digest},
        "semantic": {"path": str(path), "sha256": "0" * 64},
    }
    spec = spec_of({"repo": "a/b"}, tmp_path, adapters=adapters)
    assert adapter_path(spec, "pixel") == path
    with pytest.raises(ModelError, match="not the file its row describes") as caught:
        adapter_path(spec, "semantic")
    assert "0" * 64 in caught.value.message
    assert digest in caught.value.message
    assert caught.value.hint
    with pytest.raises(ModelError, match="the pixel adapter of model `m` is missing"):
        adapter_path(spec_of({"repo": "a/b"}, tmp_path), "pixel")
    with pytest.raises(ModelError, match="has no adapter `other`"):
        adapter_path(spec, "other")
    with pytest.raises(ModelError, match="no such file"):
        sha256_of(tmp_path / "none")


def test_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(3, dtype=torch.float16)}, path, {"rank": "4"})
    tensors, metadata = load_tensors(path)
    assert torch.equal(tensors["x"], torch.arange(3, dtype=torch.float16))
    assert metadata == read_metadata(path) == {"rank": "4"}
    whole = path.read_bytes()
    for read in (load_tensors, read_metadata):
        for damaged in (b"", b"no", whole[:-2], b"\xff" * 100):
            path.write_bytes(damaged)
            with pytest.raises(ModelError, match="no usable safetensors file"):
                read(path)
        with pytest.raises(ModelError, match="no such file"):
            read(tmp_path / "none")


class Malicious:
    """Unpickling this makes a folder."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "a.pkl"
    torch.save({"weights": Malicious(trap)}, path)
    with pytest.raises(ModelError, match=r"is refused: it asks to run `\w+.mkdir`") as caught:
        load_pickle(path)
    assert caught.value.hint
    path.write_bytes(pickle.dumps({"weights": Malicious(trap)}))
    with pytest.raises(ModelError):
        load_pickle(path)
    assert not trap.exists()


def test_pickles(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    torch.save({"x": torch.ones(1000), "rank": 4}, path)
    loaded = load_pickle(path)
    assert (loaded["rank"], loaded["x"].sum().item()) == (4, 1000)
    whole = path.read_bytes()
    for damaged in (b"", b"not a pickle", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="damaged or not a torch checkpoint"):
            load_pickle(path)
    torch.save([1], path)
    with pytest.raises(ModelError, match="holds a `list`"):
        load_pickle(path)
    with pytest.raises(ModelError, match="no such file"):
        load_pickle(tmp_path / "none")
