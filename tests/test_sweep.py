"""One encoding, each pass once, a decoding per setting; and the same pictures as `srcli upscale`."""

from __future__ import annotations

import json
import os
import re
import weakref
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mock_restorer import MockRestorer
from PIL import Image
from sweep_case import config, run_all, with_lists
from tiny_model import make_model
from torch import Tensor

from srcli.config import UpscaleConfig
from srcli.engine.mix import MixingEngine
from srcli.engine.restore import Limits
from srcli.engine.tiles import make_grid
from srcli.errors import ImageError, UsageError
from srcli.families.pisasr import TARGETS
from srcli.images.codec import decode
from srcli.images.files import plan_jobs
from srcli.networks.adapters import AdapterInfo
from srcli.networks.attached import attach, extract
from srcli.networks.backbone import PatchAutoencoder, load_unet
from srcli.networks.saved_adapters import save_adapter
from srcli.networks.unet import FixedPromptUNet
from srcli.opening import model_of, open_stream
from srcli.protocol.restoring import Mixture, Part, Picture, Settings
from srcli.sweep import run
from srcli.sweep.run import Sweep, open_sweep

WHOLE = Limits(tile_lat=64, overlap_lat=0, batch=1, part_bytes=None)


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the real networks are called."""
    counted: Counter[str] = Counter()

    def count(owner: type, method: str, name: str) -> None:
        original = getattr(owner, method)

        def counting(self: Any, *arguments: Any, **options: Any) -> Any:
            counted[name] += 1
            return original(self, *arguments, **options)

        monkeypatch.setattr(owner, method, counting)

    count(PatchAutoencoder, "encode", "encode")
    count(PatchAutoencoder, "decode", "decode")
    count(FixedPromptUNet, "forward", "pass")
    return counted


# --- the cost ---


def test_a_sweep_costs_one_encoding_two_passes_and_a_decoding_per_pair(
    models_file: Path, photo_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    sweep = run_all(
        config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="0:1.5:0.25", lambda_semantic="0:1.5:0.25")
    )
    assert len(sweep.grid.cells) == 49
    assert calls == {"encode": 1, "pass": 2, "decode": 49}


def test_separate_runs_cost_all_of_it_for_each_pair(
    models_file: Path, photo_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    for pair in ((1.0, 0.5), (0.5, 1.0), (0.25, 0.5)):
        upscaled(models_file, photo_folder / "b.jpg", tmp_path / "out", pair)
    assert calls == {"encode": 3, "pass": 6, "decode": 3}


def test_only_the_passes_that_the_pairs_need_are_loaded_and_run(
    models_file: Path, photo_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    run_all(config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_semantic="0"))
    assert calls == {"encode": 1, "pass": 1, "decode": 3}


def test_each_timestep_has_passes_of_its_own_and_the_encoding_is_shared(
    models_file: Path, photo_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    sweep = run_all(config(models_file, photo_folder / "b.jpg", tmp_path / "out", timestep="1,100,250"))
    assert calls == {"encode": 1, "pass": 6, "decode": 36}
    assert [plane for plane, _ in sweep.grid.planes()] == ["timestep=1", "timestep=100", "timestep=250"]
    assert len(list((tmp_path / "out" / "sheets").glob("*.png"))) == 3


def test_tiles_are_encoded_and_passed_once_each(
    models_file: Path, photo_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    run_all(config(models_file, photo_folder / "a.png", tmp_path / "out", tile=128, overlap=32))
    grid_of_tiles = make_grid(60, 84, 32, 8)
    assert len(grid_of_tiles.tiles) == 12
    assert calls == {"encode": 1, "pass": 2 * 12, "decode": 12}


# --- the same pictures ---


def upscaled(models_file: Path, source: Path, output: Path, lambdas: tuple[float, float], **changes: Any) -> Path:
    options = {"model": "small", "device": "cpu", "dtype": "fp32", "tile": 1024, "overlap": 0, "format": "png", **changes}
    dials = dict(zip(("lambda_pixel", "lambda_semantic"), lambdas, strict=True))
    settings = UpscaleConfig((str(source),), output, models_file=models_file, dials=dials, **options)
    (job,) = plan_jobs(settings.inputs, output, format="png")
    (outcome,) = open_stream(settings, model_of(settings)).run([job])
    assert outcome.status == "done", outcome.reason
    return job.target


def test_a_pair_has_the_very_bytes_of_upscale(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", save_images=True)
    sweep = run_all(with_lists(settings, lambda_pixel="0.5,1", lambda_semantic="0,0.3,1"))
    (photo,) = sweep.photos
    compared = set()
    for cell in sweep.grid.cells:
        pair = cell.settings["lambda_pixel"], cell.settings["lambda_semantic"]
        target = upscaled(models_file, photo.source, tmp_path / cell.key, pair)
        compared.add(target.read_bytes())
        assert sweep.image_path(photo, cell).read_bytes() == target.read_bytes(), cell.key
    assert len(compared) == 6  # no two settings gave the same picture


@pytest.mark.parametrize("color_fix", ["none", "adain", "wavelet"])
def test_with_tiles_and_colour_fix_a_pair_is_within_one_level_of_upscale(
    models_file: Path, photo_folder: Path, tmp_path: Path, color_fix: str
) -> None:
    options: dict[str, Any] = {"tile": 128, "overlap": 32, "color_fix": color_fix, "scale": 3.0}
    settings = config(models_file, photo_folder / "a.png", tmp_path / "out", save_images=True, **options)
    sweep = run_all(with_lists(settings, lambda_pixel="0.7", lambda_semantic="0,1.3"))
    (photo,) = sweep.photos
    for cell in sweep.grid.cells:
        pair = cell.settings["lambda_pixel"], cell.settings["lambda_semantic"]
        theirs = decode(upscaled(models_file, photo.source, tmp_path / cell.key, pair, **options))
        ours = decode(sweep.image_path(photo, cell))
        assert ours.rgb.shape == (180, 252, 3)
        assert np.abs(ours.rgb - theirs.rgb).max() <= 1.001 / 255


def test_several_adapters_make_an_axis_and_each_cell_is_its_adapters_own(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    base = models_file.parent / "base"
    ranks = {}
    for rank in (1, 3):
        unet = load_unet(base)
        torch.manual_seed(rank)
        with torch.no_grad():
            for parameter in attach(unet, "semantic", rank, rank, TARGETS):
                parameter.normal_(0, 0.05)
        ranks[rank] = tmp_path / f"r{rank}" / "semantic"
        save_adapter(extract(unet, "semantic", AdapterInfo(rank, rank, "base", "semantic")), ranks[rank])
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", save_images=True)
    sweep = run_all(
        with_lists(replace(settings, adapters={"semantic": tuple(ranks.values())}), lambda_pixel="1", lambda_semantic="0,1")
    )
    assert [axis.name for axis in sweep.grid.axes] == ["lambda_pixel", "lambda_semantic", "semantic"]
    assert sweep.grid.axes[2].texts == ("r1", "r3")
    (photo,) = sweep.photos
    for cell in sweep.grid.cells:
        adapter = ranks[(1, 3)[cell.place[2]]]
        pair = 1.0, cell.settings["lambda_semantic"]
        theirs = upscaled(models_file, photo.source, tmp_path / cell.key, pair, adapters={"semantic": adapter})
        assert sweep.image_path(photo, cell).read_bytes() == theirs.read_bytes(), cell.key


# --- any family's dials ---


class DialRestorer(MockRestorer):
    """What S3Diff will need: guidance mixes two passes, and the degradation score changes the encoder and the network."""

    most_cells = 10**9

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.alive = 0
        self.most_alive = 0

    def mix(self, settings: Settings, picture: Picture) -> Mixture:
        guidance, blur = settings.get("guidance_scale", 1.0), settings.get("blur", 0.5)
        weights = {("negative", blur): 1 - guidance, ("positive", blur): guidance}
        return Mixture({key: weight for key, weight in weights.items() if weight}, encoding=blur)

    def encoder(self, encoding: Hashable = None) -> tuple[Part, ...]:
        assert isinstance(encoding, float)

        def encode(picture: Tensor) -> Tensor:
            self.calls[f"encode {encoding:g}"] += 1
            return self._tracked(self.encode(picture) * encoding)

        return (Part(encode, 48, 4, 1),)

    def predict_pass(self, key: Hashable, latent: Tensor, *, exact: bool = False) -> Tensor:
        name, blur = key  # type: ignore[misc]
        self.calls[f"{name} {blur:g}"] += 1
        if latent.shape[0] * latent.shape[2] * latent.shape[3] > self.most_cells:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._tracked(latent * (0.5 if name == "positive" else 0.25))

    def decode(self, latent: Tensor, *, exact: bool = False) -> Tensor:
        self.calls["decode"] += 1
        return self._tracked(super().decode(latent))

    def _tracked(self, result: Tensor) -> Tensor:
        """Counts results until the engine lets go of them."""
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(result.untyped_storage(), self._freed)
        return result

    def _freed(self) -> None:
        self.alive -= 1


def settings_of(guidance: Sequence[float], blur: Sequence[float]) -> list[Settings]:
    return [{"guidance_scale": w, "blur": b} for w in guidance for b in blur]


def test_a_family_with_other_dials_is_swept_by_the_same_engine() -> None:
    restorer = DialRestorer()
    settings = settings_of((1.0, 1.1, 2.0), (0.25, 0.5))
    picture = torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0)) - 0.5
    results = dict(MixingEngine(restorer, WHOLE).restore_all(picture, settings))
    assert restorer.calls == {
        **{f"{what} {blur}": 1 for what in ("encode", "positive", "negative") for blur in (0.25, 0.5)},
        "decode": 6,
    }
    assert sorted(results) == list(range(6))
    for index, each in enumerate(settings):
        w, b = each["guidance_scale"], each["blur"]
        expected = picture * b * (1 - (w * 0.5 + (1 - w) * 0.25))
        assert torch.allclose(results[index], expected.clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("guidance", [2, 10])
def test_memory_does_not_grow_with_the_settings(guidance: int) -> None:
    """The order given is the worst: each setting needs other passes than the one before."""
    restorer = DialRestorer()
    settings = settings_of([1 + 0.1 * i for i in range(guidance)], (0.1, 0.2, 0.3, 0.4, 0.5))
    for _, result in MixingEngine(restorer, WHOLE).restore_all(torch.zeros(3, 64, 64), settings):
        del result
    assert restorer.calls["decode"] == len(settings)
    assert 3 <= restorer.most_alive <= 6


def test_running_out_of_memory_shrinks_the_tiles_and_goes_on() -> None:
    restorer = DialRestorer()
    restorer.most_cells = 16 * 16
    engine = MixingEngine(restorer, Limits(32, 4, 2, None))
    results = list(engine.restore_all(torch.full((3, 160, 160), 0.5), settings_of((1.0, 1.5), (1.0,))))
    assert engine.repairs.memory_retries > 0
    for index, result in results:
        assert torch.allclose(result, torch.full_like(result, 0.25 if index == 0 else 0.5 * (1 - 0.625)), atol=1e-6)


# --- photos and references ---


def test_photos_without_a_fitting_reference_are_named_and_the_others_swept(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    (hq_folder / "b.png").unlink()
    Image.new("RGB", (10, 10)).save(hq_folder / "sub" / "c.png")
    (photo_folder / "broken.png").write_bytes(b"no picture")
    sweep = run_all(config(models_file, photo_folder, tmp_path / "out", hq=hq_folder))
    assert [photo.name for photo in sweep.complete] == ["a"]
    reasons = {failure.path.name: failure.reason for failure in sweep.failures}
    assert set(reasons) == {"b.jpg", "c.png", "broken.png"}
    assert "no reference" in reasons["b.jpg"]
    assert "132 x 200 px" in reasons["c.png"]
    assert "10 x 10 px" in reasons["c.png"]


def test_a_crop_beyond_the_picture_is_that_pictures_fault(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    sweep = run_all(config(models_file, photo_folder, tmp_path / "out", lambda_pixel="1", crop=("180,10,60,60",)))
    assert [photo.name for photo in sweep.complete] == ["a"]
    assert all("--crop 180,10,60,60" in failure.reason for failure in sweep.failures)


def test_a_transparent_photo_is_swept_but_not_measured(models_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (20, 20), (200, 100, 50, 128)).save(tmp_path / "in" / "a.png")
    Image.new("RGB", (80, 80), (200, 100, 50)).save(tmp_path / "a.png")
    measured = run_all(config(models_file, tmp_path / "in", tmp_path / "1", hq=tmp_path / "a.png"))
    assert "transparent" in measured.failures[0].reason
    assert run_all(config(models_file, tmp_path / "in", tmp_path / "2")).failures == []


def test_a_photo_that_fails_midway_leaves_the_others(
    models_file: Path, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run.prepare_canvas

    def sometimes(picture: Any, *options: Any) -> Any:
        if picture.width == 50:
            raise ImageError("not this one", "leave it out")
        return original(picture, *options)

    monkeypatch.setattr(run, "prepare_canvas", sometimes)
    sweep = run_all(config(models_file, photo_folder, tmp_path / "out", lambda_pixel="1"))
    assert [(failure.path.name, failure.reason, failure.hint) for failure in sweep.failures] == [
        ("b.jpg", "not this one", "leave it out")
    ]
    assert [photo.name for photo in sweep.complete] == ["a", "sub/c"]


# --- going on ---


def test_a_second_run_does_only_what_is_missing(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", hq=hq_folder / "b.png")
    run_all(settings)
    calls.clear()
    assert all(done.skipped for done in open_sweep(settings).run())
    assert calls == {}
    more = with_lists(settings, lambda_semantic="0:2:0.5")
    assert [done.cell.settings["lambda_semantic"] for done in open_sweep(more).run() if not done.skipped] == [2.0, 2.0, 2.0]
    assert calls == {"encode": 1, "pass": 2, "decode": 3}
    victim = run_all(more).views.whole("b", "lambda_pixel=1,lambda_semantic=0,timestep=1")
    victim.unlink()
    assert [done.cell.key for done in open_sweep(more).run() if not done.skipped] == [
        "lambda_pixel=1,lambda_semantic=0,timestep=1"
    ]
    assert victim.is_file()


def test_a_new_metric_a_new_crop_and_saved_images_are_made_up_for(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", hq=hq_folder / "b.png")
    run_all(replace(settings, metrics=("psnr",)))
    for change in ({}, {"crop": ("0,0,20,20",)}, {"save_images": True}):
        settings = replace(settings, **change)
        assert [done.skipped for done in open_sweep(settings).run()] == [False] * 4
    assert [done.skipped for done in open_sweep(settings).run()] == [True] * 4


def test_references_that_come_later_are_no_change_of_the_photos(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="1")
    images = list(shown(run_all(replace(settings, save_images=True))))
    assert len(images) == 1
    with caplog.at_level("INFO", "srcli"):
        run_all(replace(settings, hq=hq_folder / "b.png"))
        assert "changed since" not in caplog.text
        assert list(shown(open_sweep(settings))) == images, "no reference decides a pixel"
        Image.new("RGB", (200, 124), "red").save(hq_folder / "b.png")
        run_all(replace(settings, hq=hq_folder / "b.png"))
        assert "changed since" in caplog.text
    assert list(shown(run_all(settings))) == images


def test_a_changed_input_is_done_again(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder, tmp_path / "out", lambda_pixel="1")
    run_all(settings)
    Image.new("RGB", (33, 50), "red").save(photo_folder / "sub" / "c.png")
    again = {done.photo.name for done in open_sweep(settings).run() if not done.skipped}
    assert again == {"sub/c"}


def shown(sweep: Sweep) -> dict[str, bytes]:
    """Crops and full images of a sweep."""
    folder = sweep.config.output
    files = [*folder.glob("cells/**/*.png"), *folder.glob("images/**/*.*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


def test_crops_and_images_of_other_settings_are_not_taken_for_these(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="0,1")
    full = replace(settings, crop=("0,0,20,20",), save_images=True)
    run_all(replace(full, color_fix="none"))
    run_all(replace(settings, color_fix="adain", overwrite=True))
    assert not list((tmp_path / "out" / "images").rglob("*.png")), "they are of settings that count no more"
    again = run_all(replace(full, color_fix="adain"))
    assert shown(again) == shown(run_all(replace(full, color_fix="adain", output=tmp_path / "fresh")))


def test_crops_and_images_of_an_earlier_photo_are_not_taken_for_those_of_this(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    plain = config(models_file, photo_folder / "a.png", tmp_path / "out", lambda_pixel="1", lambda_semantic="0,1")
    full = replace(plain, crop=("0,0,20,20",), save_images=True)
    run_all(full)
    Image.new("RGB", (33, 50), "red").save(photo_folder / "a.png")
    run_all(plain)
    assert not list((tmp_path / "out" / "images").rglob("*.png"))
    assert shown(run_all(full)) == shown(run_all(replace(full, output=tmp_path / "fresh")))


def test_another_format_or_quality_replaces_the_images(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="1")
    settings = replace(settings, save_images=True)
    run_all(settings)
    fine = shown(run_all(replace(settings, format="jpeg")))
    rough = shown(run_all(replace(settings, format="jpeg", quality=20)))
    names = ["images/lambda_pixel=1,lambda_semantic=1,timestep=1/b.jpg"]
    assert list(fine) == list(rough) == names
    assert len(rough[names[0]]) < len(fine[names[0]])
    assert shown(run_all(with_lists(replace(settings, save_images=False, format="png"), lambda_semantic="1"))) == rough, (
        "they still count"
    )


def test_a_changed_row_or_base_is_another_sweep(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    models = make_model(tmp_path / "model", semantic=True)
    settings = config(models, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="1")
    run_all(settings)
    text = models.read_text()
    models.write_text(text + "min_side = 128\n")
    with pytest.raises(UsageError, match="`min_side` was `0`, is `128`"):
        open_sweep(settings)
    models.write_text(text)
    (weights,) = (tmp_path / "model").rglob("unet/*.safetensors")
    os.utime(weights, (1, 1))
    with pytest.raises(UsageError, match="`base's files` was"):
        open_sweep(settings)


@pytest.mark.parametrize("output", [".", "hq/sweep"])
def test_a_sweep_may_lie_beside_its_photos(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = config(models_file, Path("photos"), Path(output), lambda_pixel="1", lambda_semantic="1", hq=Path("hq"))
    assert [photo.name for photo in run_all(settings).photos] == ["a", "b", "sub/c"]
    assert [done.skipped for done in open_sweep(settings).run()] == [True] * 3
    one = config(models_file, Path("photos/a.png"), Path("photos"), lambda_pixel="1", lambda_semantic="1")
    assert len(run_all(one).photos) == 1


@pytest.mark.parametrize("read", ["photos", "hq"])
def test_what_is_read_cannot_be_the_output(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, read: str
) -> None:
    with pytest.raises(UsageError, match="cannot be the output too"):
        open_sweep(config(models_file, photo_folder, tmp_path / read, hq=hq_folder))
    assert len(list((tmp_path / read).rglob("*"))) == 4


def test_photos_of_one_name_are_refused(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(photo_folder / "a.jpg")
    with pytest.raises(UsageError, match="are both called `a`"):
        open_sweep(config(models_file, photo_folder, tmp_path / "out"))


def test_a_folder_of_another_sweep_is_refused_with_what_differs(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1")
    run_all(settings)
    other = replace(settings, color_fix="none", tile=None)
    with pytest.raises(UsageError) as caught:
        open_sweep(other)
    assert "`color_fix` was `adain`, is `none`" in caught.value.message
    assert re.search(r"`tile` was `1024`, is `\d+`", caught.value.message)
    assert "--overwrite" in caught.value.hint
    assert [done.skipped for done in open_sweep(replace(other, overwrite=True)).run()] == [False] * 4


def test_a_line_that_a_kill_cut_is_done_again(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1")
    run_all(settings)
    file = tmp_path / "out" / "cells.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    assert [done.skipped for done in open_sweep(settings).run()].count(False) == 1
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 4
