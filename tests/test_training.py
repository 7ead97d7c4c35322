from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import make_base

from srcli.config import TrainPixelConfig
from srcli.errors import ModelError, UsageError
from srcli.models.adapters import load_adapter
from srcli.training import loop
from srcli.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from srcli.training.data import DegradedCrops, find_photos
from srcli.training.loop import learning_rate, train_pixel
from srcli.training.losses import pixel_loss


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[0:90, 0:120]
    for index in range(5):
        picture = np.stack([x * 2, y * 2, (x * y) % 200 + index * 10], -1).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    return folder


def make_config(photos: Path, output: Path, **changes: object) -> TrainPixelConfig:
    settings: dict[str, object] = {"steps": 6, "batch": 2, "crop": 32, "rank": 2, "alpha": 2, "learning_rate": 1e-2}
    settings |= {"workers": 0, "device": "cpu", "dtype": "fp32", "save_every": 3, "log_every": 2, "warmup": 2}
    return TrainPixelConfig(photos, output, "base", **(settings | changes))  # type: ignore[arg-type]


def test_training_lowers_the_loss_and_saves_what_upscale_needs(base: Path, photos: Path, tmp_path: Path) -> None:
    losses = []
    real = loop.pixel_loss

    def recorded(sr: torch.Tensor, hq: torch.Tensor, l1_weight: float) -> torch.Tensor:
        losses.append(float(real(sr, hq).detach()))
        return real(sr, hq, l1_weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "pixel_loss", recorded)
        path = train_pixel(make_config(photos, tmp_path, steps=40, save_every=1000, licence="MIT"), base)
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:4])
    adapter = load_adapter(path, "pixel")
    assert (adapter.info.rank, adapter.info.stage, adapter.info.steps, adapter.info.licence) == (2, "pixel", 40, "MIT")
    assert json.loads((path.parent / "adapter_config.json").read_text())["r"] == 2
    assert not (tmp_path / "checkpoint").exists()


def test_a_run_that_stopped_goes_on_to_the_same_adapter(base: Path, photos: Path, tmp_path: Path) -> None:
    whole = train_pixel(make_config(photos, tmp_path / "whole"), base)
    with pytest.MonkeyPatch.context() as patch:
        calls = []

        def fail_at_5(sr: torch.Tensor, hq: torch.Tensor, l1_weight: float) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return pixel_loss(sr, hq, l1_weight)

        patch.setattr(loop, "pixel_loss", fail_at_5)
        with pytest.raises(KeyboardInterrupt):
            train_pixel(make_config(photos, tmp_path / "two"), base)
    found = load_checkpoint(tmp_path / "two", "pixel", {})
    assert found is not None
    assert found.step == 3
    resumed = train_pixel(make_config(photos, tmp_path / "two"), base)
    one, two = load_adapter(whole, "pixel"), load_adapter(resumed, "pixel")
    for key, value in one.tensors.items():
        assert torch.allclose(value, two.tensors[key], atol=2e-3), key


def test_the_same_seed_trains_the_same_adapter(base: Path, photos: Path, tmp_path: Path) -> None:
    paths = [train_pixel(make_config(photos, tmp_path / name, seed=seed), base) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    one, same, other = (load_adapter(path, "pixel").tensors for path in paths)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_checkpoint_of_other_settings_is_refused(base: Path, photos: Path, tmp_path: Path) -> None:
    settings = {"rank": 2, "seed": 0}
    adapter = load_adapter(train_pixel(make_config(photos, tmp_path / "x", steps=1), base), "pixel")
    save_checkpoint(Checkpoint(1, adapter, {}, settings), tmp_path)
    with pytest.raises(ModelError, match="`seed` was 0, is 1"):
        load_checkpoint(tmp_path, "pixel", {"rank": 2, "seed": 1})


def test_a_damaged_checkpoint_is_told(base: Path, photos: Path, tmp_path: Path) -> None:
    adapter = load_adapter(train_pixel(make_config(photos, tmp_path / "x", steps=1), base), "pixel")
    save_checkpoint(Checkpoint(1, adapter, {}, {}), tmp_path)
    (tmp_path / "checkpoint" / "optimiser.pt").write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"optimiser\.pt"):
        load_checkpoint(tmp_path, "pixel", {})


def test_a_kill_between_two_renames_loses_nothing(base: Path, photos: Path, tmp_path: Path) -> None:
    adapter = load_adapter(train_pixel(make_config(photos, tmp_path / "x", steps=1), base), "pixel")
    save_checkpoint(Checkpoint(1, adapter, {}, {}), tmp_path)
    (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")
    found = load_checkpoint(tmp_path, "pixel", {})
    assert found is not None
    assert found.step == 1


def test_a_loss_that_is_no_number_stops_the_run(base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a number at step"):
        train_pixel(make_config(photos, tmp_path, learning_rate=1e30), base)


def test_faults_of_the_data_are_told(base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        train_pixel(make_config(tmp_path / "none", tmp_path), base)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no photos"):
        train_pixel(make_config(tmp_path / "empty", tmp_path), base)
    with pytest.raises(UsageError, match="3 options are wrong"):
        make_config(photos, tmp_path, rank=0, dtype="int8", crop=33)


def test_samples_depend_on_seed_and_index_alone(photos: Path) -> None:
    data = DegradedCrops(find_photos(photos), 32, 50, seed=3)
    again = DegradedCrops(find_photos(photos), 32, 50, seed=3, cache_bytes=0)
    for index in (0, 7, 31):
        one, two = data[index], again[index]
        assert torch.equal(one["lq"], two["lq"])
        assert torch.equal(one["hq"], two["hq"])
        assert one["lq"].shape == one["hq"].shape == (3, 32, 32)
        assert one["hq"].min() >= -1
        assert one["hq"].max() <= 1
    assert not torch.equal(data[0]["hq"], data[5]["hq"])


def test_every_photo_is_drawn_once_a_lap(photos: Path) -> None:
    data = DegradedCrops(find_photos(photos), 32, 50)
    drawn = []
    data._photo = lambda path: drawn.append(path) or np.zeros((40, 40, 3), np.uint8)  # type: ignore[method-assign]
    for index in range(5):
        data[index]
    assert sorted(drawn) == find_photos(photos)


def test_photos_smaller_than_the_crop_are_enlarged(photos: Path) -> None:
    assert DegradedCrops(find_photos(photos), 200, 1)[0]["hq"].shape == (3, 200, 200)


def test_losses_are_the_formulas() -> None:
    sr, hq = torch.full((1, 3, 2, 2), 0.5), torch.zeros(1, 3, 2, 2)
    assert float(pixel_loss(sr, hq)) == pytest.approx(0.25)
    assert float(pixel_loss(sr, hq, 0.1)) == pytest.approx(0.25 + 0.05)


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(101)]
    assert rates[0] < 0.2
    assert max(rates) == pytest.approx(rates[9], abs=0.05)
    assert rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_the_command_survives_a_kill(base: Path, photos: Path, tmp_path: Path) -> None:
    options = ["--base", base, "--steps", 400, "--batch", 1, "--crop", 16, "--rank", 2, "--alpha", 2, "--workers", 0]
    options += ["--save-every", 2, "--log-every", 2, "--device", "cpu", "--dtype", "fp32"]
    command = [sys.executable, "-m", "srcli", "train-pixel", photos, "-o", tmp_path / "run", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    command[command.index("--steps") + 1] = 400
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stderr
    assert (tmp_path / "run" / "pixel" / "adapter_model.safetensors").is_file()
