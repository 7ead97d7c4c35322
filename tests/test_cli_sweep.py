"""`srcli sweep` from its arguments to its files and its exit code."""

from __future__ import annotations

import csv
import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import Done, another_run_in, srcli, start
from PIL import Image
from tiny_model import make_model

from srcli.errors import ModelError
from srcli.evaluation.metrics import Opened
from srcli.sweep import plots, run


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


def srcli_sweep(*arguments: object) -> Done:
    return srcli("sweep", *arguments)


def small(models_file: Path) -> list[object]:
    return ["--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32"]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def lines_of(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


GRID = ["--lambda-pixel", "0,1", "--lambda-semantic", "0:1:0.5"]


def test_a_sweep_writes_sheets_tables_plots_and_a_page_and_tells_json(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    options = ["--hq", hq_folder, "--pick", "ssim", "--crop", "10,10,40,30", "--save-images", "--json"]
    done = srcli_sweep(photo_folder, "-o", out, *GRID, *options, *small(models_file))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["done"], told["skipped"], told["failed"], told["images"]) == (18, 0, [], 3)
    assert told["axes"] == {"lambda_pixel": [0.0, 1.0], "lambda_semantic": [0.0, 0.5, 1.0]}
    assert len(told["cells"]) == 6
    assert set(told["best"]) == {"psnr", "ssim"}
    assert set(told["picks"]) == {"a", "b", "sub/c"}
    best = max(told["cells"], key=lambda cell: cell["psnr"])
    assert told["best"]["psnr"] == best
    sheets = sorted(str(path.relative_to(out / "sheets")) for path in (out / "sheets").rglob("*.png"))
    assert sheets == [f"{name}{kind}.png" for name in ("a", "b", "sub/c") for kind in (".crop-10-10-40-30", "")]
    assert sorted(path.name for path in (out / "plots").glob("*.svg")) == [
        *("psnr-lambda_pixel.svg", "psnr-lambda_semantic.svg", "ssim-lambda_pixel.svg"),
        *("ssim-lambda_semantic.svg", "ssim-psnr.svg"),
    ]
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [(row["lambda_pixel"], row["lambda_semantic"]) for row in rows[:4]] == [
        ("0", "0"),
        ("0", "0.5"),
        ("0", "1"),
        ("1", "0"),
    ]
    assert float(rows[5]["psnr"]) == pytest.approx(told["cells"][5]["psnr"])
    assert (out / "table.md").read_text().count("\n| ") >= 6
    folder = out / "images" / "lambda_pixel=1,lambda_semantic=0.5,timestep=1"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png")) == ["a.png", "b.png", "sub/c.png"]
    assert Path(told["page"]) == out / "index.html"
    assert not list(out.rglob(".*"))


def test_people_are_told_the_plan_the_best_and_where_to_look_and_stdout_has_the_table_alone(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    done = srcli_sweep(photo_folder / "b.jpg", "-o", tmp_path / "out", *GRID, "--hq", hq_folder / "b.png", *small(models_file))
    assert done.returncode == 0, done.stderr
    heads, _, *rows = done.stdout.splitlines()[1:9]
    assert heads.split() == ["λ_pix", "λ_sem", "PSNR", "↑", "SSIM", "↑"]
    assert [row.split()[:2] for row in rows] == [[pixel, semantic] for pixel in "01" for semantic in ("0", "0.5", "1")]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "1 photo, 6 settings (lambda_pixel 2, lambda_semantic 3): 6 pictures" in done.stderr
    assert "best PSNR: " in done.stderr
    assert re.search(r"^6 pictures done in [\d.]+ s$", done.stderr, re.MULTILINE)
    assert str(tmp_path / "out" / "index.html") in done.stderr.replace("\n", "")
    assert "\x1b" not in done.stderr


def test_without_references_there_are_pictures_and_no_numbers(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = srcli_sweep(photo_folder, "-o", tmp_path / "out", "--lambda-pixel", "0:1", "--json", *small(models_file))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["best"] == {}
    assert told["cells"] == [{"lambda_pixel": 0.0}, {"lambda_pixel": 1.0}]
    assert not (tmp_path / "out" / "plots").exists()
    assert (tmp_path / "out" / "sheets" / "sub" / "c.png").is_file()


def test_repeating_the_command_skips_and_more_settings_are_added(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    options = [photo_folder, "-o", tmp_path / "out", "--lambda-pixel", "1", "--json", *small(models_file)]
    srcli_sweep(*options, "--lambda-semantic", "0,1")
    again = json.loads(srcli_sweep(*options, "--lambda-semantic", "0,1").stdout)
    assert (again["done"], again["skipped"]) == (0, 6)
    more = json.loads(srcli_sweep(*options, "--lambda-semantic", "0,0.5,1").stdout)
    assert (more["done"], more["skipped"]) == (3, 6)
    anew = json.loads(srcli_sweep(*options, "--lambda-semantic", "0,1", "--overwrite").stdout)
    assert (anew["done"], anew["skipped"]) == (6, 0)


def test_other_settings_in_the_same_folder_are_refused(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    options = [photo_folder / "b.jpg", "-o", tmp_path / "out", "--lambda-pixel", "1", *small(models_file)]
    srcli_sweep(*options)
    done = srcli_sweep(*options, "--color-fix", "none")
    assert done.returncode == 2
    assert "`color_fix` was `adain`, is `none`" in done.stderr
    assert "--overwrite" in done.stderr


def test_bad_photos_are_named_and_the_exit_code_tells(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    (photo_folder / "bad.png").write_bytes(b"no picture")
    (hq_folder / "b.png").unlink()
    done = srcli_sweep(photo_folder, "-o", tmp_path / "out", *GRID, "--hq", hq_folder, "--json", *small(models_file))
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["images"] == 2
    assert sorted(Path(failure["input"]).name for failure in told["failed"]) == ["b.jpg", "bad.png"]
    assert done.stderr.count("no reference") == 1
    assert "2 failed, as named above" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lambda-pixel", "0:x"], ["--lambda-pixel 0:x"]),
        ([], ["nothing to sweep"]),
        (["--lambda-pixel", "1", "--pick", "psnr"], ["give `--hq`"]),
        (["--lambda-pixel", "1", "--crop", "1,2", "--scale", "9"], ["2 options are wrong", "--crop 1,2", "--scale 9"]),
        (["--timestep", "1,2000,0.5"], ["`--timestep 2000` is not between 0 and 999", "`--timestep 0.5` is not a whole number"]),
        (["--lambda-pixel", "1", "--crop", "0,0,9999,1"], ["no photo can be swept", "9999"]),
        (["--lambda-pixel", "1", "--semantic", "nowhere"], ["no semantic adapter in `nowhere`"]),
    ],
)
def test_wrong_use_is_told_and_nothing_is_written(
    models_file: Path, photo_folder: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    done = srcli_sweep(photo_folder, "-o", tmp_path / "out", *options, *small(models_file))
    assert done.returncode == 2
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_semantic_dial_of_a_model_without_that_adapter_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    models_file = make_model(tmp_path / "plain")
    done = srcli_sweep(photo_folder, "-o", tmp_path / "out", *GRID, *small(models_file))
    assert done.returncode == 2
    assert "no dial `--lambda-semantic`" in done.stderr
    assert "adapters that it takes: `--pixel`, `--semantic`" in done.stderr


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of another scale and colour fix, without a semantic adapter."""
    file = make_model(tmp_path_factory.mktemp("runs") / "other")
    text = file.read_text().replace("native_scale = 4", 'native_scale = 2\ncolor_fix = "none"')
    file.write_text(text)
    return file.parent


def test_models_beside_each_other_are_an_axis_and_each_is_loaded_once(
    models_file: Path, other: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, loaded, original = tmp_path / "out", [], run.open_engine
    monkeypatch.setattr(run, "open_engine", lambda spec, *words: loaded.append(spec.native_scale) or original(spec, *words))
    options = [photo_folder, "-o", out, "--hq", hq_folder, *small(models_file), "--model", other, "--json"]
    done = srcli_sweep(*options, "--save-images")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["axes"] == {"model": ["small", "other"]}
    assert (told["done"], told["best"]["psnr"]["model"] in ("small", "other"), loaded) == (6, True, [4, 2])
    for name, model in (("small", "small"), ("other", other)):
        words = ["--models-file", models_file, "--model", model, "--device", "cpu", "--dtype", "fp32", "--scale", 4]
        assert srcli("upscale", photo_folder / "a.png", "-o", tmp_path / f"{name}.png", *words).returncode == 0
        (kept,) = out.glob(f"images/*,timestep=1,model={name}/a.png")
        assert kept.read_bytes() == (tmp_path / f"{name}.png").read_bytes()
    assert (out / "plots" / "psnr-model.svg").is_file()
    assert "<td>other</td>" in (out / "index.html").read_text()
    assert [row["model"] for row in csv.DictReader((out / "table.csv").read_text().splitlines())] == ["small", "other"]
    assert json.loads(srcli_sweep(*options).stdout)["skipped"] == 6
    with_dial = json.loads(srcli_sweep(*options, "--lambda-pixel", "0.5,1").stdout)
    assert [(cell["lambda_pixel"], cell["model"]) for cell in with_dial["cells"]] == [
        *((0.5, "small"), (0.5, "other")),
        *((1.0, "small"), (1.0, "other")),
    ]


def test_what_one_of_the_models_cannot_is_refused_with_its_name(
    models_file: Path, other: Path, photo_folder: Path, tmp_path: Path
) -> None:
    other_file = tmp_path / "lesser.toml"
    other_file.write_text((other / "models.toml").read_text().replace("small", "lesser").replace('"base"', f'"{other / "base"}"'))
    other_file.write_text(other_file.read_text().replace('"pixel/', f'"{other}/pixel/'))
    options = [photo_folder, "-o", tmp_path / "out", "--models-file", other_file, "--model", models_file.parent]
    done = srcli_sweep(*options, "--model", "lesser", "--lambda-semantic", "0,1")
    assert done.returncode == 2
    assert "the model `lesser` (PiSA-SR) has no dial `--lambda-semantic`" in done.stderr.replace("\n", " ")
    twice = srcli_sweep(*options, "--model", models_file.parent)
    assert "`--model` names one model twice" in twice.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["x.png", "file/out"])
def test_an_output_that_is_no_folder_is_refused(models_file: Path, photo_folder: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("in the way")
    done = srcli_sweep(photo_folder / "a.png", "-o", tmp_path / output, "--lambda-pixel", "1", *small(models_file))
    assert done.returncode == 2
    assert "hint" in done.stderr


def test_an_output_inside_the_input_is_not_swept_itself(models_file: Path, photo_folder: Path) -> None:
    options = [photo_folder, "-o", photo_folder / "sweep", "--lambda-pixel", "1", "--json", *small(models_file)]
    assert json.loads(srcli_sweep(*options).stdout)["done"] == 3
    again = json.loads(srcli_sweep(*options).stdout)
    assert (again["done"], again["skipped"]) == (0, 3)


def test_metrics_and_plots_that_cannot_be_made_are_told_and_the_rest_is_done(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run.open_metrics

    def without_lpips(names: tuple[str, ...], device: object, crop_border: int) -> Opened:
        opened = original([name for name in names if name != "lpips"], device, crop_border=crop_border)  # type: ignore[arg-type]
        return Opened(opened.metrics, None, {"lpips": ModelError("`lpips` has no weights here", "get them")})

    monkeypatch.setattr(run, "open_metrics", without_lpips)
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    options = ["--hq", hq_folder, "--metrics", "psnr,lpips", "--json"]
    done = srcli_sweep(photo_folder, "-o", tmp_path / "out", "--lambda-pixel", "1,0", *options, *small(models_file))
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert set(told["missing"]) == {"lpips", "plots"}
    assert set(told["best"]) == {"psnr"}
    assert "going on without lpips: `lpips` has no weights here" in done.stderr
    assert (tmp_path / "out" / "index.html").is_file()


def many(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.effect_noise((side, side), 60).convert("RGB").save(folder / f"{index:02}.png")
    return folder


def test_a_killed_sweep_goes_on_with_the_missing_cells(models_file: Path, tmp_path: Path) -> None:
    inputs, out = many(tmp_path / "in", 4, 64), tmp_path / "out"
    options = [inputs, "-o", out, "--lambda-pixel", "0:2:0.25", "--lambda-semantic", "0,1", "--json", *small(models_file)]
    process = start("sweep", *options)
    wait_until(lambda: len(lines_of(out / "cells.jsonl")) >= 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    survived = [json.loads(line) for line in lines_of(out / "cells.jsonl")]
    assert 20 <= len(survived) < 72
    views = {
        path: path.stat().st_mtime_ns for each in survived for path in [out / "cells" / each["photo"] / f"{each['cell']}.jpg"]
    }
    done = srcli_sweep(*options)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["skipped"], told["done"]) == (len(survived), 72 - len(survived))
    assert {path: path.stat().st_mtime_ns for path in views} == views
    assert not list(out.rglob(".*"))
    for path in (out / "sheets").glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 10
    assert len(list((out / "sheets").glob("*.png"))) == 4


def test_an_interrupt_exits_with_130_and_tells_how_to_go_on(models_file: Path, tmp_path: Path) -> None:
    inputs, out = many(tmp_path / "in", 4, 96), tmp_path / "out"
    process = start("sweep", inputs, "-o", out, "--lambda-pixel", "0:2:0.05", "--json", *small(models_file))
    wait_until(lambda: len(lines_of(out / "cells.jsonl")) >= 3)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "repeat the command to go on" in stderr
    assert "Traceback" not in stderr
    assert json.loads(stdout)["done"] < 164


def test_a_folder_that_is_written_into_takes_no_second_sweep(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    words = [photo_folder, "-o", output, "--lambda-pixel", "1", *small(models_file)]
    with another_run_in(output, "flock"):
        done = srcli_sweep(*words, "--overwrite")
    assert done.returncode == 2
    assert "another run writes into" in done.stderr
    assert list(output.iterdir()) == []
    assert srcli_sweep(*words).returncode == 0
