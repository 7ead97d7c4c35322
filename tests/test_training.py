from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import make_base
from training_case import make_config, make_photos, told

from srcli.config.training import TrainConfig
from srcli.errors import ModelError, OutOfMemoryError, TrainingError, UsageError
from srcli.networks.saved_adapters import load_adapter
from srcli.training import checkpoint, loop
from srcli.training.checkpoint import checkpoints
from srcli.training.loop import train
from srcli.training.objective import Objective
from srcli.training.output import begin_output

GAN = {"losses": {"gan": 0.1}, "gan": {"features": 4, "r1": 1.0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def pixel(base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pixel")
    train(make_config("pixel", photos, output), base)
    return output


def trained(config: TrainConfig, base: Path) -> dict[str, torch.Tensor]:
    """Train and return the adapter of the last checkpoint, in float32."""
    assert train(config, base) == config.output / config.stage
    return load_adapter(checkpoints(config.output)[-1] / "adapter_model.safetensors", config.stage).tensors


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """As if a signal came while step `step` is computed."""
    real = loop.Run._train_step

    def stepped(self: loop.Run, parts: Any, stop: Any) -> Any:
        if self.step + 1 == step:
            stop.asked = True
        return real(self, parts, stop)

    patch.setattr(loop.Run, "_train_step", stepped)


def records(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["kind"] == kind]


def test_training_lowers_the_loss_and_saves_what_upscale_needs(base: Path, photos: Path, tmp_path: Path) -> None:
    config = make_config("pixel", photos, tmp_path, {"steps": 40}, save_every=20, log_every=4, licence="MIT")
    assert train(config, base) == tmp_path / "pixel"
    losses = [record["l2"] for record in records(tmp_path, "train")]
    assert [record["step"] for record in records(tmp_path, "train")] == list(range(4, 41, 4))
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    adapter = load_adapter(tmp_path / "pixel" / "adapter_model.safetensors", "pixel")
    assert (adapter.info.rank, adapter.info.stage, adapter.info.steps, adapter.info.licence) == (2, "pixel", 40, "MIT")
    config_of_peft = json.loads((tmp_path / "pixel" / "adapter_config.json").read_text())
    assert config_of_peft["r"] == 2
    assert config_of_peft["target_modules"] == sorted(adapter.modules)
    assert any((tmp_path / "tensorboard").iterdir())


def test_decibels_structure_and_amplitudes_can_be_trained_by(base: Path, photos: Path, tmp_path: Path) -> None:
    recipe = {
        "steps": 40,
        "losses": {"l2": 0, "psnr": 0.002, "ssim": 0.1, "frequency": 0.1, "grid": 1},
        "frequency": {"mode": "amplitude", "excess": 2},
        "degradation": {"mild_probability": 0.5, "mild_sharpening": 1},
    }
    train(make_config("pixel", photos, tmp_path, recipe, save_every=40, log_every=4), base)
    told = records(tmp_path, "train")
    assert all({"psnr", "ssim", "frequency", "grid"} <= record.keys() and "l2" not in record for record in told)
    gained = {loss: told[0][loss] - np.mean([record[loss] for record in told[-3:]]) for loss in ("psnr", "ssim")}
    assert gained["psnr"] > 0.5  # dB
    assert gained["ssim"] > 0.01, gained


def test_losses_compare_with_sharpened_references_and_validation_with_the_photos(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    told: list[dict[str, list[dict[str, Any]]]] = []
    for name, recipe in (("plain", {}), ("sharp", {"references": {"sharpening": 1}})):
        output = tmp_path / name
        train(make_config("pixel", photos, output, {"steps": 1, **recipe}, val=str(photos), val_images=1, log_every=1), base)
        told.append({kind: records(output, kind) for kind in ("train", "val")})
    plain, sharp = told
    assert sharp["train"][0]["l2"] > 1.05 * plain["train"][0]["l2"]
    assert sharp["val"][0]["loss"] > 1.05 * plain["val"][0]["loss"]
    assert sharp["val"][0]["psnr_pixel"] == plain["val"][0]["psnr_pixel"]


RECIPES = {
    "pixel": ("pixel", {}),
    "pixel with average and cosine": ("pixel", {"ema": 0.9, "schedule": "cosine", "warmup": 3}),
    "pixel with discriminator": ("pixel", GAN),
    "semantic": (
        "semantic",
        {"ema": 0.5, **GAN, "references": {"sharpening": 1}, "frequency": {"mode": "amplitude", "patch": 16}},
    ),
    "semantic, accumulated and orthogonal": ("semantic", {"batch": 1, "accumulate": 2, "orthogonal": True}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_ten_steps_and_ten_more_equal_twenty(name: str, base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    stage, recipe = RECIPES[name]
    changes = {"pixel": pixel} if stage == "semantic" else {}
    recipe = {"steps": 20, **recipe}
    whole = trained(make_config(stage, photos, tmp_path / "whole", recipe, **changes), base)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(10, patch)
        stopped = train(make_config(stage, photos, tmp_path / "two", recipe, save_every=1000, **changes), base)
    assert stopped == loop.Stopped(10, "SIGTERM")
    resumed = trained(make_config(stage, photos, tmp_path / "two", recipe, resume=True, **changes), base)
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    one, two = records(tmp_path / "whole", "train"), records(tmp_path / "two", "train")
    assert one == two


def test_the_same_seed_trains_the_same_adapter(base: Path, photos: Path, tmp_path: Path) -> None:
    one, same, other = (
        trained(make_config("pixel", photos, tmp_path / name, seed=seed), base) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_accumulated_batches_make_the_step_of_one_large_batch(base: Path, photos: Path, tmp_path: Path) -> None:
    large = trained(make_config("pixel", photos, tmp_path / "large", {"batch": 4}), base)
    small = trained(make_config("pixel", photos, tmp_path / "small", {"batch": 2, "accumulate": 2}), base)
    for key, value in large.items():
        assert torch.allclose(value, small[key], atol=2e-3), key  # Adam turns rounding into steps where a gradient is near 0


def test_the_semantic_stage_leaves_the_pixel_adapter_and_the_base_as_they_are(
    base: Path, photos: Path, pixel: Path, tmp_path: Path
) -> None:
    file = pixel / "pixel" / "adapter_model.safetensors"
    before = file.read_bytes(), (base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    kept: dict[str, torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        real = loop.Run._finish

        def look(self: loop.Run) -> Path:
            kept.update({key: value.clone() for key, value in self.trainee.network.state_dict().items()})
            return real(self)

        patch.setattr(loop.Run, "_finish", look)
        semantic = trained(make_config("semantic", photos, tmp_path, pixel=pixel), base)
    assert any(value.abs().max() > 0 for key, value in semantic.items() if "lora_B" in key)
    assert (file.read_bytes(), (base / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()) == before
    for key, value in load_adapter(file, "pixel").tensors.items():
        assert torch.equal(value, kept[key.replace(".weight", ".pixel.weight")]), key


def test_an_orthogonal_adapter_stays_off_what_the_pixel_adapter_spans(
    base: Path, photos: Path, pixel: Path, tmp_path: Path
) -> None:
    from srcli.families.pisasr.orthogonal import fidelity_subspaces, overlap

    subspaces = fidelity_subspaces(load_adapter(pixel / "pixel" / "adapter_model.safetensors", "pixel"))
    shares = {}
    for orthogonal in (True, False):
        output = tmp_path / str(orthogonal)
        train(make_config("semantic", photos, output, {"orthogonal": orthogonal, "ema": 0.5}, pixel=pixel), base)
        shares[orthogonal] = overlap(load_adapter(checkpoints(output)[-1] / "adapter_model.safetensors", "semantic"), subspaces)
    assert shares[True] < 1e-6
    assert shares[False] > 1e-3


def test_validation_writes_figures_a_sheet_and_the_best_adapter(base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    config = make_config("semantic", photos, tmp_path, pixel=pixel, val=str(photos), val_images=2, val_every=3)
    train(config, base)
    found = records(tmp_path, "val")
    assert [record["step"] for record in found] == [0, 3, 6]
    assert {"loss", "psnr_lq", "psnr_pixel", "psnr_both", "ssim_lq", "ssim_pixel", "ssim_both"} <= set(found[0])
    assert found[0]["psnr_pixel"] == found[0]["psnr_both"]  # a fresh adapter adds nothing
    assert found[2]["psnr_pixel"] == found[0]["psnr_pixel"]
    assert found[2]["psnr_both"] != found[0]["psnr_both"]
    with Image.open(tmp_path / "samples" / "step-00000006.png") as sheet:
        assert sheet.size == (4 * 36 + 4, 22 + 2 * 36)
    best = min(found[1:], key=lambda record: record["loss"])
    assert load_adapter(tmp_path / "best" / "adapter_model.safetensors", "semantic").info.steps == best["step"]


def test_the_newest_checkpoints_are_kept(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path, {"steps": 9}, save_every=2, keep=2), base)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000008", "step-00000009"]


def test_a_checkpoint_of_other_settings_is_refused(base: Path, photos: Path, pixel: Path) -> None:
    with pytest.raises(ModelError) as caught:
        train(make_config("pixel", photos, pixel, {"rank": 4}, resume=True, seed=1), base)
    assert "`rank` was 2, is 4" in caught.value.message
    assert "`seed` was 0, is 1" in caught.value.message


def flip_a_byte(state: Path) -> None:
    """Amid the weights, where torch itself does not see it."""
    content = bytearray(state.read_bytes())
    weights = torch.load(state)["state"]["weights"]
    content[content.index(max(weights, key=torch.numel).numpy().tobytes()) + 5] ^= 0x40
    state.write_bytes(content)


def drop_the_weights(state: Path) -> None:
    content = torch.load(state)
    del content["state"]["weights"]
    torch.save(content, state)


def cut(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:5000])


@pytest.mark.parametrize("damage", [cut, flip_a_byte, drop_the_weights])
def test_a_run_goes_on_from_an_older_checkpoint_where_the_newest_is_damaged(
    damage: Callable[[Path], None], base: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(make_config("pixel", photos, tmp_path), base)
    before = (tmp_path / "pixel" / "adapter_model.safetensors").read_bytes()
    damage(checkpoints(tmp_path)[-1] / "state.pt")
    train(make_config("pixel", photos, tmp_path, resume=True, save_every=1, keep=2), base)
    (told,) = [message for message in caplog.messages if "damaged" in message]
    assert "step-00000006" in told
    assert told.endswith("going on from the older checkpoint of step 3")
    assert (tmp_path / "pixel" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005", "step-00000006"]


def test_where_no_checkpoint_is_whole_each_is_named(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path), base)
    for path in checkpoints(tmp_path):
        cut(path / "state.pt")
    with pytest.raises(ModelError) as caught:
        train(make_config("pixel", photos, tmp_path, {"steps": 8}, resume=True), base)
    assert all(str(path / "state.pt") in caught.value.message for path in checkpoints(tmp_path))
    assert f"delete `{tmp_path / 'checkpoints'}`" in caught.value.hint


def test_a_damaged_checkpoint_outlives_no_later_one(base: Path, photos: Path, tmp_path: Path) -> None:
    """Whether or not the run comes as far as it: it would be in the way, and count among those to keep."""
    train(make_config("pixel", photos, tmp_path), base)
    cut(checkpoints(tmp_path)[-1] / "state.pt")
    shutil.copytree(checkpoints(tmp_path)[-1], tmp_path / "checkpoints" / "step-00000009")
    train(make_config("pixel", photos, tmp_path, {"steps": 5}, resume=True, keep=1), base)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000005"]


@pytest.mark.parametrize("stage", ["pixel", "semantic"])
def test_a_run_can_begin_with_a_trained_adapter(stage: str, base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    first = make_config(stage, photos, tmp_path / "first", pixel=pixel)
    train(first, base)
    kept = load_adapter(first.output / stage / "adapter_model.safetensors", stage)

    # a rate that moves nothing, so that what comes out is what went in
    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "steps": 1}
    train(make_config(stage, photos, tmp_path / "still", still, pixel=pixel, start_from=first.output), base)
    again = load_adapter(tmp_path / "still" / stage / "adapter_model.safetensors", stage)
    for name, tensor in kept.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor)
    assert again.info.steps == kept.info.steps + 1

    train(make_config(stage, photos, tmp_path / "on", {"steps": 2}, pixel=pixel, start_from=first.output), base)
    on = load_adapter(tmp_path / "on" / stage / "adapter_model.safetensors", stage)
    assert any((on.tensors[name] - tensor).abs().max() > 1e-3 for name, tensor in kept.tensors.items())


def test_an_adapter_of_another_shape_is_no_start(base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="rank 2 and alpha 2") as caught:
        train(make_config("pixel", photos, tmp_path / "a", {"rank": 4}, start_from=pixel), base)
    assert "--rank 2 --alpha 2" in (caught.value.hint or "")
    with pytest.raises(ModelError, match="`targets` leave out"):
        train(make_config("pixel", photos, tmp_path / "b", {"targets": "conv_in"}, start_from=pixel), base)
    with pytest.raises(ModelError, match="no pixel adapter"):
        train(make_config("pixel", photos, tmp_path / "c", start_from=tmp_path), base)


def test_a_run_goes_on_only_with_the_start_it_had(base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path, start_from=pixel), base)
    with pytest.raises(ModelError, match="`start from`"):
        train(make_config("pixel", photos, tmp_path, {"steps": 8}, resume=True), base)


def test_a_constant_schedule_can_be_prolonged(base: Path, photos: Path, tmp_path: Path) -> None:
    train(make_config("pixel", photos, tmp_path), base)
    train(make_config("pixel", photos, tmp_path, {"steps": 8}, resume=True), base)
    assert [record["step"] for record in records(tmp_path, "train")] == [2, 4, 6, 8]


def test_a_full_disk_stops_the_run_and_spoils_no_checkpoint(base: Path, photos: Path, tmp_path: Path) -> None:
    real, calls = torch.save, []

    def full(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            file.write(b"the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(content, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.torch, "save", full)
        with pytest.raises(TrainingError, match="No space left on device") as caught:
            train(make_config("pixel", photos, tmp_path), base)
    assert "--resume" in caught.value.hint
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert train(make_config("pixel", photos, tmp_path, resume=True), base) == tmp_path / "pixel"


def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_checkpoint(base: Path, photos: Path, tmp_path: Path) -> None:
    real = Objective.picture_losses

    def broken(self: Objective, sr: torch.Tensor, hq: torch.Tensor, step: int, *rest: Any) -> dict[str, torch.Tensor]:
        losses = real(self, sr, hq, step, *rest)
        return {name: value * (float("nan") if step == 4 else 1) for name, value in losses.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Objective, "picture_losses", broken)
        with pytest.raises(TrainingError, match=r"the loss \(l2\) is not a number at step 5") as caught:
            train(make_config("pixel", photos, tmp_path), base)
    assert "step-00000003" in caught.value.hint
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_memory_that_runs_out_names_the_options_that_help(error: Exception, base: Path, photos: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_backward", fail)
        with pytest.raises(OutOfMemoryError, match="at step 1") as caught:
            train(make_config("pixel", photos, tmp_path), base)
    for option in ("--decode-chunk 1", "--batch 1 --accumulate 2", "--gradient-checkpointing", "--crop"):
        assert option in caught.value.hint


def test_what_costs_memory_is_told_before_the_start(
    base: Path, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "srcli"):
        train(make_config("pixel", photos, tmp_path, {"steps": 1}), base)
    (line,) = [message for message in caplog.messages if message.startswith("memory:")]
    assert "activations" in line
    assert "decoder" in line


def test_decoding_in_chunks_and_checkpointing_change_nothing(base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    plain = trained(make_config("semantic", photos, tmp_path / "plain", pixel=pixel), base)
    chunked = trained(make_config("semantic", photos, tmp_path / "chunked", pixel=pixel, decode_chunk=1), base)
    saving = trained(make_config("semantic", photos, tmp_path / "saving", pixel=pixel, gradient_checkpointing=True), base)
    for key, value in plain.items():
        assert torch.allclose(value, chunked[key], atol=2e-3), key
        assert torch.allclose(value, saving[key], atol=2e-3), key


def test_an_output_that_holds_another_run_is_refused(base: Path, photos: Path, pixel: Path) -> None:
    with pytest.raises(UsageError, match="a finished adapter") as caught:
        begin_output(make_config("pixel", photos, pixel))
    assert "--resume" in caught.value.hint
    begin_output(make_config("pixel", photos, pixel, resume=True))


def test_a_prompt_that_the_base_does_not_know_is_told(base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="knows no prompt `a cat`"):
        train(make_config("semantic", photos, tmp_path, pixel=pixel, told=told("a cat")), base)
    with pytest.raises(UsageError, match="captions need a text encoder"):
        train(make_config("semantic", photos, tmp_path, pixel=pixel, captions="sidecar"), base)


def test_settings_that_make_no_sense_are_named_at_once(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make_config("semantic", photos, tmp_path, {"crop": 34}, keep=0, dtype="int8")
    for part in ("4 options are wrong", "--pixel", "--keep 0", "--crop 34", "--dtype int8"):
        assert part in caught.value.message


@pytest.mark.parametrize("stage", ["pixel", "semantic"])
def test_bfloat16_trains_and_resumes_exactly_too(stage: str, base: Path, photos: Path, pixel: Path, tmp_path: Path) -> None:
    changes = {"dtype": "bf16", **({"pixel": pixel} if stage == "semantic" else {})}
    whole = trained(make_config(stage, photos, tmp_path / "whole", **changes), base)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        train(make_config(stage, photos, tmp_path / "two", **changes), base)
    resumed = trained(make_config(stage, photos, tmp_path / "two", resume=True, **changes), base)
    for key, value in whole.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, resumed[key]), key
    with pytest.raises(UsageError, match="a CPU does not train in fp16"):
        train(make_config(stage, photos, tmp_path / "fp16", **(changes | {"dtype": "fp16"})), base)


def test_targets_that_fit_no_layer_are_told(base: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fits no layer"):
        train(make_config("pixel", photos, tmp_path, {"targets": "nothing"}), base)
    one, empty = ({"steps": 1, **more} for more in ({}, {"targets": ""}))  # empty: those of the method
    assert trained(make_config("pixel", photos, tmp_path / "a", one), base).keys() == (
        trained(make_config("pixel", photos, tmp_path / "b", empty), base).keys()
    )


def test_a_stable_diffusion_base_trains_with_captions_and_decodes_one_by_one(tmp_path: Path) -> None:
    """The reference's tiny base: a real autoencoder and text encoder; the decoder's gradient is the same in any chunks."""
    base = Path(__file__).parent / "data" / "pisa" / "base"
    photos = make_photos(tmp_path / "photos", 3)
    for index in range(2):
        (photos / f"{index}.txt").write_text(f"a ramp number {index}\n")
    short: dict[str, Any] = {"crop": 64, "steps": 3}
    pixel = trained(make_config("pixel", photos, tmp_path / "pixel", short), base)
    assert any(value.abs().max() > 0 for key, value in pixel.items() if "lora_B" in key)
    results = {}
    for chunk in (0, 2):
        output = tmp_path / str(chunk)
        changes = {
            "pixel": tmp_path / "pixel",
            "told": told("photograph", "painting, blur"),
            "captions": "sidecar",
            "decode_chunk": chunk,
            "val": str(photos),
            "val_images": 1,
        }
        results[chunk] = trained(make_config("semantic", photos, output, short, **changes), base)
        assert {"csd", "l2"} <= set(records(output, "train")[0])
    for key, value in results[0].items():
        assert torch.allclose(value, results[2][key], atol=4e-3), key


def test_photos_without_a_caption_are_told(tmp_path: Path, pixel: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = Path(__file__).parent / "data" / "pisa" / "base"
    photos = make_photos(tmp_path / "photos", 3)
    (photos / "0.txt").write_text("a ramp")
    train(make_config("pixel", photos, tmp_path / "pixel", {"crop": 64, "steps": 1}), base)
    changes = {"pixel": tmp_path / "pixel", "told": told("photograph", "blur"), "captions": "sidecar"}
    train(make_config("semantic", photos, tmp_path / "semantic", {"crop": 64, "steps": 1}, **changes), base)
    assert any("2 photos without a caption" in message and "1.png" in message for message in caplog.messages)
