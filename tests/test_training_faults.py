"""What can go wrong in a training run, and whether the advice that is given then can be followed."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import runpy
import shutil
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tiny_model import make_base
from training_case import make_config, make_photos

from srcli import disk
from srcli.errors import OutOfMemoryError, TrainingError, UsageError
from srcli.families.pisasr.trainee import PisaTrainee
from srcli.networks.saved_adapters import load_adapter
from srcli.training import checkpoint, loop, setup, tracking
from srcli.training.checkpoint import checkpoints
from srcli.training.loop import train
from srcli.training.losses import critic
from srcli.training.objective import Objective
from srcli.training.output import begin_output
from srcli.training.setup import Setup, shared_state

GAN_ALONE = {"losses": {"l2": 0, "gan": 1.0}, "gan": {"features": 4}, "steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), size=(160, 140))


@pytest.fixture(scope="module")
def pixel(base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pixel")
    train(make_config("pixel", photos, output, {"steps": 1}), base)
    return output


def spoil_gradient(step: int | Container[int], patch: pytest.MonkeyPatch) -> None:
    """A finite loss whose gradient is not, in the step after `step` steps, or after each of several numbers of them."""
    steps = [step] if isinstance(step, int) else step
    real = Objective.gradient

    def gradient(self: Objective, z_sr: Any, batch: Any, now: int, scale: float = 1.0) -> Any:
        found, values, pictures = real(self, z_sr, batch, now, scale)
        return found * (float("nan") if now in steps else 1), values, pictures

    patch.setattr(Objective, "gradient", gradient)


# No numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_a_gradient_that_is_no_number_is_never_saved(clip_norm: float, base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil_gradient(2, patch)  # a step after which a checkpoint would be saved
        with pytest.raises(TrainingError, match="the gradient is not a number at step 3") as caught:
            train(make_config("pixel", photos, tmp_path, {"clip_norm": clip_norm}), base)
    assert checkpoints(tmp_path) == []
    assert "begin anew with a lower `--lr`" in caught.value.hint
    assert train(make_config("pixel", photos, tmp_path, {"learning_rate": 1e-3, "steps": 1}), base) == tmp_path / "pixel"


def test_the_advice_after_a_gradient_that_is_no_number_can_be_followed(base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil_gradient(5, patch)
        with pytest.raises(TrainingError) as caught:
            train(make_config("pixel", photos, tmp_path / "a", dtype="bf16"), base)
    found = re.search(r"another `--output`, `--start-from ([^`]+)` and a lower `--lr`", caught.value.hint)
    assert found
    lower = {"learning_rate": 1e-3, "steps": 1}
    train(make_config("pixel", photos, tmp_path / "b", lower, start_from=Path(found[1])), base)
    adapter = load_adapter(tmp_path / "b" / "pixel" / "adapter_model.safetensors", "pixel")
    assert adapter.info.steps == 4
    assert all(tensor.isfinite().all() for tensor in adapter.tensors.values())
    assert "`--resume --dtype fp32`" in caught.value.hint
    train(make_config("pixel", photos, tmp_path / "a", dtype="fp32", resume=True), base)


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is scaled as in float16, which this machine may lack: steps whose gradient overflows are left out."""
    make_optimiser = Setup._make_optimiser

    def with_scaler(self: Setup) -> None:
        make_optimiser(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu")
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"
        self.optimiser = AcceleratedOptimizer(self.optimiser.optimizer, scaler=self.accelerator.scaler)
        self.accelerator._optimizers = [self.optimiser]

    monkeypatch.setattr(Setup, "_make_optimiser", with_scaler)


@pytest.mark.usefixtures("scaled")
def test_a_gradient_that_stays_no_number_ends_a_run_in_float16(base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spoil_gradient(range(5, 100), patch)
        with pytest.raises(TrainingError, match=f"the gradient is not a number at step {6 + loop.LEFT_OUT_MAX}") as caught:
            train(make_config("pixel", photos, tmp_path, {"steps": 60}), base)
    assert "`--resume --dtype fp32`" in caught.value.hint
    last = load_adapter(checkpoints(tmp_path)[-1] / "adapter_model.safetensors", "pixel")
    assert all(tensor.isfinite().all() for tensor in last.tensors.values())


@pytest.mark.usefixtures("scaled")
def test_float16_leaves_out_what_overflows_now_and_then(base: Path, photos: Path, tmp_path: Path) -> None:
    often = [step for step in range(80) if step % 20]  # twice as many as may follow each other
    with pytest.MonkeyPatch.context() as patch:
        spoil_gradient(often, patch)
        assert train(make_config("pixel", photos, tmp_path, {"steps": 80}, save_every=80), base) == tmp_path / "pixel"


def test_a_discriminator_whose_gradient_is_no_number_is_never_saved(base: Path, photos: Path, tmp_path: Path) -> None:
    real = critic.discriminator_loss

    def spoilt(*given: Any) -> torch.Tensor:
        loss = real(*given)
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(critic, "discriminator_loss", spoilt)
        with pytest.raises(TrainingError, match=r"the loss \(discriminator\) is not a number at step 1"):
            train(make_config("pixel", photos, tmp_path, GAN_ALONE, save_every=1), base)
    assert checkpoints(tmp_path) == []


# Memory --------------------------------------------------------------------------------------------------------------


def run_out(patch: pytest.MonkeyPatch, place: Any, name: str) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    patch.setattr(place, name, fail)


@pytest.mark.parametrize(("batch", "advice"), [(3, "--batch 1 --accumulate 6"), (9, "--batch 3 --accumulate 6")])
def test_memory_advice_keeps_the_samples_of_a_step(batch: int, advice: str, base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        run_out(patch, loop.Run, "_backward")
        with pytest.raises(OutOfMemoryError) as caught:
            train(make_config("pixel", photos, tmp_path, {"batch": batch, "accumulate": 2}), base)
    assert advice in caught.value.hint


def test_memory_advice_for_a_run_that_has_a_checkpoint_can_be_followed(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path / "a", {"steps": 3}), base)
    with pytest.MonkeyPatch.context() as patch:
        run_out(patch, loop.Run, "_backward")
        with pytest.raises(OutOfMemoryError, match="at step 4") as caught:
            train(make_config("pixel", photos, tmp_path / "a", resume=True), base)
    same, other = caught.value.hint.split("; or ")
    assert "`--resume`" in same
    assert "--batch 1 --accumulate 2" in same
    assert "--crop" not in same
    found = re.search(r"another `--output`, `--start-from ([^`]+)` and a smaller `--crop` than 32", other)
    assert found
    train(make_config("pixel", photos, tmp_path / "a", {"batch": 1, "accumulate": 2, "steps": 4}, resume=True), base)
    train(make_config("pixel", photos, tmp_path / "b", {"crop": 16, "steps": 1}, start_from=Path(found[1])), base)


def test_memory_that_runs_out_before_the_first_step_is_told_too(base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        run_out(patch, setup, "memory_need")
        with pytest.raises(OutOfMemoryError, match="on `cpu` while the run is set up") as caught:
            train(make_config("pixel", photos, tmp_path), base)
    assert "--batch 1 --accumulate 2" in caught.value.hint


def test_memory_advice_under_a_limit_of_the_process_names_that(base: Path, photos: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    with pytest.MonkeyPatch.context() as patch:
        run_out(patch, setup, "memory_need")
        patch.setattr(resource, "getrlimit", lambda _: (5_000_000_000, resource.RLIM_INFINITY))
        with pytest.raises(OutOfMemoryError) as caught:
            train(make_config("pixel", photos, tmp_path), base)
    assert caught.value.hint.startswith("raise this process's own limit of 5.0 GB (`ulimit -v`, or the batch job's), or repeat")


def test_frequency_patches_of_any_valid_size_can_be_measured(base: Path, photos: Path, tmp_path: Path) -> None:
    recipe = {"crop": 128, "steps": 1, "losses": {"frequency": 1.0}, "frequency": {"patch": 96}}
    assert train(make_config("pixel", photos, tmp_path, recipe), base) == tmp_path / "pixel"


def test_merged_weights_count_once_in_the_memory_that_is_told(base: Path, photos: Path, tmp_path: Path) -> None:
    """They stay the same whatever the crops; counted for each of them, the need would be many times too high."""
    from srcli.training.memory_need import memory_need

    needs = []
    for batch in (1, 2, 3):
        config = make_config("pixel", photos, tmp_path, {"crop": 128, "batch": batch, "rank": 16})
        with shared_state():
            trainee = Setup(config, base).trainee
            needs.append(memory_need(config, trainee, [], lambda sr, hq: (sr - hq).square().mean()).network)
    assert needs[2] - needs[1] == pytest.approx(needs[1] - needs[0], rel=1e-6)
    assert 2 * needs[0] - needs[1] > 50_000  # bytes that no crop adds to


# The adversarial loss alone ------------------------------------------------------------------------------------------


def test_the_adversarial_loss_alone_can_train_and_be_validated(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path, GAN_ALONE, val=str(photos), val_images=1, val_every=1), base)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [record for record in lines if record["kind"] == "val"]
    assert len(told) == 3
    assert all("psnr_pixel" in record and "loss" not in record for record in told)
    assert not (tmp_path / "best").exists()  # nothing to compare by


def test_a_discriminator_may_train_alone_at_first(base: Path, photos: Path, tmp_path: Path) -> None:
    late = {**GAN_ALONE, "gan": {"features": 4, "start": 1}, "weight_decay": 0.0}
    train(make_config("pixel", photos, tmp_path, late, save_every=1), base)
    adapters = [load_adapter(path / "adapter_model.safetensors", "pixel").tensors for path in checkpoints(tmp_path)]
    moved = [sum(float(value.abs().sum()) for key, value in tensors.items() if "lora_B" in key) for tensors in adapters]
    assert moved[0] == 0 < moved[1]


# Files ---------------------------------------------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "a file")


@pytest.mark.parametrize(("name", "step"), [("save_sheet", 0), ("the adapter", 6)])
def test_a_full_disk_anywhere_is_an_error_with_a_way_on(name: str, step: int, base: Path, photos: Path, tmp_path: Path) -> None:
    val = {"val": str(photos), "val_images": 1} if name == "save_sheet" else {}
    with pytest.MonkeyPatch.context() as patch:
        if name == "save_sheet":
            patch.setattr(loop, name, full)
        else:
            save = PisaTrainee.save
            patch.setattr(PisaTrainee, "save", lambda *args, half=False: full() if half else save(*args))
        with pytest.raises(TrainingError, match=f"after step {step}: No space left on device \\(`a file`\\)") as caught:
            train(make_config("pixel", photos, tmp_path, **val), base)
    assert "make room on the disk, then repeat the command with `--resume`" in caught.value.hint
    assert train(make_config("pixel", photos, tmp_path, resume=True, **val), base) == tmp_path / "pixel"


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EACCES])
def test_a_checkpoint_that_cannot_be_written_says_why(number: int, base: Path, photos: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "whole", fail)
        with pytest.raises(TrainingError, match=f"cannot write the checkpoint .*: {os.strerror(number)}") as caught:
            train(make_config("pixel", photos, tmp_path, {"steps": 1}), base)
    assert ("make room on the disk" in caught.value.hint) == (number == errno.EDQUOT)
    assert "repeat the command with `--resume`" in caught.value.hint
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_is_told_and_an_older_one_used(
    number: int, base: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(make_config("pixel", photos, tmp_path, {"steps": 2}, save_every=1), base)
    real = torch.load

    def load(path: Path, **options: Any) -> Any:
        if path.parent.name == "step-00000002":
            raise OSError(number, os.strerror(number))
        return real(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", load)
        train(make_config("pixel", photos, tmp_path, {"steps": 2}, save_every=1, resume=True), base)
    (told,) = [message for message in caplog.messages if "older checkpoint" in message]
    assert os.strerror(number) in told
    assert "of step 1" in told


def test_a_resumed_run_on_a_full_disk_keeps_its_records(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path), base)
    before = (tmp_path / "metrics.jsonl").read_text()

    def half(path: Path, content: bytes) -> None:
        with disk.whole(path) as file:
            file.write(content[: len(content) // 2])
            full()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "write_whole", half)
        with pytest.raises(TrainingError, match="No space left"):
            train(make_config("pixel", photos, tmp_path, {"steps": 8}, resume=True), base)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_finished_run_without_checkpoints_does_not_begin_anew(base: Path, photos: Path, tmp_path: Path) -> None:
    config = make_config("pixel", photos, tmp_path, {"steps": 1}, resume=True)
    begin_output(config)
    train(config, base)
    begin_output(config)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UsageError, match="a finished adapter and no checkpoint") as caught:
        begin_output(config)
    assert f"--start-from {tmp_path}" in caught.value.hint


def test_fewer_steps_than_are_done_are_refused(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path, {"steps": 3}), base)
    with pytest.raises(UsageError, match=r"step-00000003` is past `--steps 2`"):
        train(make_config("pixel", photos, tmp_path, {"steps": 2}, resume=True), base)


# Data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [",weight=9", ",lq={photos}", ""])
def test_a_resumed_run_tells_that_its_samples_are_others(
    end: str, base: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_photos(tmp_path / "other", 2)
    both = (str(photos), str(other))
    train(replace(make_config("pixel", photos, tmp_path / "run", {"steps": 1}), data=both), base)
    changed = (str(photos) + end.format(photos=photos), str(other))
    train(replace(make_config("pixel", photos, tmp_path / "run", {"steps": 2}, resume=True), data=changed), base)
    assert any("not those that the run began with" in message for message in caplog.messages) == bool(end)


def test_photos_for_validation_have_their_prompts_too(base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    many = make_photos(tmp_path / "many", 20, (64, 64))
    recipe = {"steps": 1, "losses": {"csd": 1.0}}
    for val in ("", str(photos)):
        with shared_state():
            run = Setup(make_config("semantic", many, tmp_path / "run", recipe, pixel=pixel, val=val, val_images=1), base)
        assert [sample.prompt for sample in (*run.fixed, run.crops[0])] == ["positive", "positive"]


def test_photos_of_val_are_not_trained_on(
    base: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(photos.parent)
    config = make_config("pixel", photos, tmp_path, {"steps": 1}, val=photos.name, val_images=2)
    with caplog.at_level(logging.INFO, "srcli"), shared_state():
        run = Setup(config, base)
    assert [photo.hq.name for source in run.crops.sources for photo in source.photos] == ["2.png", "3.png", "4.png"]
    assert len(run.fixed) == 2
    assert any("2 photos of `--data` not trained on: `--val` holds the same" in message for message in caplog.messages)
    with pytest.raises(UsageError, match="takes all photos of `--data") as caught:
        train(replace(config, val_images=5), base)
    assert "--val-images" in caught.value.hint


def test_a_crop_must_consist_of_whole_latent_cells(photos: Path, tmp_path: Path) -> None:
    stable = Path(__file__).parent / "data" / "pisa" / "base"
    with pytest.raises(UsageError, match=r"the crop `36` is no multiple of 8") as caught:
        train(make_config("pixel", photos, tmp_path, {"crop": 36}), stable)
    assert "--crop" in caught.value.hint


def test_the_base_of_tiny_refuses_keys_that_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.toml").write_text("stepz = 3\n")
    script = Path(__file__).resolve().parents[1] / "scripts" / "pretrain_tiny.py"
    words = [str(script), str(tmp_path), "-o", str(tmp_path), "--recipe", str(tmp_path / "base.toml")]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(script.parent))  # as Python does for a script
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(script), run_name="__main__")
    assert caught.value.code == 2
    assert "unknown keys" in capsys.readouterr().err
