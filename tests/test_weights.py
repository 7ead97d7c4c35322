"""Finding, fetching and checking a model's files; the hub is a small real HTTP server on loopback."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from srcli.errors import ModelError
from srcli.models import weights
from srcli.models.spec import ModelSpec, read_row
from srcli.models.weights import (
    adapter_path,
    base_folder,
    embedded_folder,
    load_pickle,
    load_tensors,
    read_metadata,
    sha256_of,
)

COMMIT = "c0ffee" * 6 + "c0de"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}
WANTED = {
    "model_index.json": json.dumps(INDEX).encode(),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 5000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"vae" * 100,
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"text" * 100,
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"a b",
    "scheduler/scheduler_config.json": b"{}",
}
UNWANTED = {
    "README.md": b"#",
    "v2-1.ckpt": b"pickle",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "unet/model.onnx": b"onnx",
    "vae/diffusion_pytorch_model.non_ema.safetensors": b"other",
    "text_encoder/deep/er.json": b"{}",
}
UNET = "unet/diffusion_pytorch_model.safetensors"


class Hub(ThreadingHTTPServer):
    """As much of the model hub as `snapshot_download` speaks to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.broken: dict[str, list[str]] = {}
        """What befalls the next GETs of a file: `drop` (the connection ends midway) or `500`."""
        self.asked: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
        if repo in self.server.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repo not in self.server.repos:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._answer(200, json.dumps(self._listing(repo, api[2])).encode(), {"Content-Type": "application/json"})
        elif file and file[3] in self.server.repos[repo]:
            self._send_file(file[3], self.server.repos[repo][file[3]])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _listing(self, repo: str, kind: str | None) -> Any:
        files = self.server.repos[repo]
        if kind == "tree":
            return [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
        return {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def _send_file(self, name: str, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        plans = self.server.broken.get(name)
        plan = plans.pop(0) if plans and self.command == "GET" else ""
        if plan == "500":
            self._answer(500, b"")
            return
        status, span = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span:
            start = int(span[1])
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self._answer(status, data, headers, cut=len(data) // 2 if plan == "drop" else None)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


def spec_of(base: dict[str, Any], folder: Path = Path(), **more: Any) -> ModelSpec:
    return read_row("m", {"family": "pisasr", "native_scale": 4, "base": base, **more}, folder / "models.toml")


# The hub -------------------------------------------------------------------------------------------------------------


def test_download_fetches_what_is_needed_and_caches_it(hub: Hub) -> None:
    hub.repos["a/b"] = {**WANTED, **UNWANTED}
    spec = spec_of({"repo": "a/b"})
    with pytest.raises(ModelError, match="not in the cache") as caught:
        base_folder(spec, allow_download=False)
    assert "srcli models fetch m" in caught.value.hint
    assert not hub.asked
    folder = base_folder(spec)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == WANTED
    hub.asked.clear()
    assert base_folder(spec, allow_download=False) == folder
    assert base_folder(spec) == folder
    assert not hub.asked


def test_cache_serves_when_the_server_is_gone(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    spec = spec_of({"repo": "a/b", "revision": COMMIT})
    folder = base_folder(spec)
    hub.shutdown()
    hub.server_close()
    assert base_folder(spec) == folder


def test_mirror_is_used_and_told(hub: Hub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("srcli"), "propagate", True)
    hub.repos["good/mirror"] = WANTED
    spec = spec_of({"repo": "gone/base", "mirrors": ["gone/too", "good/mirror"]})
    with caplog.at_level(logging.INFO, "srcli"):
        folder = base_folder(spec)
    assert "good--mirror" in str(folder)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "`gone/base`: no such repository, or a private one; trying the mirror `gone/too`" in warnings
    assert "`gone/too`: no such repository, or a private one; trying the mirror `good/mirror`" in warnings
    hub.asked.clear()
    assert base_folder(spec) == folder
    assert not hub.asked


def test_every_failed_repository_is_named(hub: Hub) -> None:
    hub.repos["x/old"] = WANTED
    hub.repos["x/bin"] = {name: data for name, data in WANTED.items() if name != UNET} | UNWANTED
    hub.repos["x/other"] = {"README.md": b"#"}
    hub.gated.add("x/gated")
    mirrors = ["x/gated", "x/bin", "x/other", "x--y/z"]
    with pytest.raises(ModelError) as caught:
        base_folder(spec_of({"repo": "x/none", "mirrors": mirrors}))
    message = caught.value.message
    assert "`x/none`: no such repository" in message
    assert "`x/gated`: its owner wants a login" in message
    assert "`x/bin`: lacks `unet/*.safetensors`" in message
    assert "`x/other`: lacks `model_index.json`" in message
    assert "`x--y/z`: " in message
    assert all(way in caught.value.hint for way in ("mirror", "--base", "HF_HUB_OFFLINE"))
    with pytest.raises(ModelError, match="`x/old`: no such revision"):
        base_folder(spec_of({"repo": "x/old", "revision": "v9"}))


def test_interrupted_download_is_resumed(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.broken[UNET] = ["drop"]
    folder = base_folder(spec_of({"repo": "a/b"}))
    assert (folder / UNET).read_bytes() == WANTED[UNET]


def test_broken_download_is_an_error_and_can_be_repeated(hub: Hub) -> None:
    hub.repos["a/b"] = WANTED
    hub.broken[UNET] = ["drop", "500"]
    spec = spec_of({"repo": "a/b"})
    with pytest.raises(ModelError, match="500 Internal Server Error") as caught:
        base_folder(spec)
    assert "`a/b`" in caught.value.message
    with pytest.raises(ModelError, match="not in the cache"):
        base_folder(spec, allow_download=False)
    assert (base_folder(spec) / UNET).read_bytes() == WANTED[UNET]


def test_unreachable_hub(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelError, match=r"cannot fetch the base of model `m`\n  - `a/b`: .*Connect"):
        base_folder(spec_of({"repo": "a/b"}))


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.repos["a/b"] = WANTED
    with pytest.raises(ModelError, match="`HF_HUB_OFFLINE` is set"):
        base_folder(spec_of({"repo": "a/b"}))
    assert not hub.asked


def test_incomplete_shards_are_seen(tmp_path: Path) -> None:
    for name, data in WANTED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert weights._lacking(tmp_path) == []
    shards = {"weight_map": {"a": "part-1-of-2.safetensors", "b": "diffusion_pytorch_model.safetensors"}}
    (tmp_path / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(shards))
    assert weights._lacking(tmp_path) == ["unet/part-1-of-2.safetensors"]
    (tmp_path / "text_encoder/model.safetensors").rename(tmp_path / "text_encoder/model.fp16.safetensors")
    assert "text_encoder/*.safetensors" in weights._lacking(tmp_path)


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
        "lost": {"path": "b.safetensors", "sha256": digest},
    }
    spec = spec_of({"repo": "a/b"}, tmp_path, adapters=adapters)
    assert adapter_path(spec, "pixel") == path
    with pytest.raises(ModelError, match="not the file its row describes") as caught:
        adapter_path(spec, "semantic")
    assert "0" * 64 in caught.value.message
    assert digest in caught.value.message
    assert caught.value.hint
    with pytest.raises(ModelError, match="the lost adapter of model `m` is missing"):
        adapter_path(spec, "lost")
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
