"""A sweep into the folder of an earlier one: nothing of it is lost, and nothing made twice."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Done, srcli
from sweep_case import config, run_all
from test_sweep import shown
from tiny_model import make_model

from srcli.errors import UsageError
from srcli.sweep import outputs
from srcli.sweep.outputs import write_outputs
from srcli.sweep.run import open_sweep


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds."""
    monkeypatch.setattr(outputs, "write_plots", lambda table, folder: [])


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


def sweep(models_file: Path, *arguments: object) -> Done:
    return srcli("sweep", *arguments, "--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32")


def told_of(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_smaller_sweep_leaves_the_report_of_the_larger_one_whole(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [photo_folder / "a.png", "-o", out, "--hq", hq_folder / "a.png", "--pick", "psnr", "--json"]
    larger = told_of(sweep(models_file, *words, "--lambda-pixel", "0,1", "--lambda-semantic", "0:1:0.5"))
    before = {name: (out / name).read_bytes() for name in ("table.csv", "table.md", "picks.csv", "index.html", "sheets/a.png")}
    done = sweep(models_file, *words, "--lambda-semantic", "0,1")
    smaller = told_of(done)
    assert "4 settings of earlier sweeps into this folder among them" in done.stderr
    assert (smaller["done"], smaller["skipped"]) == (0, 6)
    assert {key: smaller[key] for key in ("axes", "cells", "best", "picks")} == {
        key: larger[key] for key in ("axes", "cells", "best", "picks")
    }
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_dial_that_is_left_out_stands_at_its_default_and_is_not_made_again(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    words = [photo_folder / "b.jpg", "-o", tmp_path / "out", "--json"]
    one = told_of(sweep(models_file, *words, "--lambda-semantic", "0,1"))
    assert one["axes"] == {"lambda_semantic": [0.0, 1.0]}
    both = told_of(sweep(models_file, *words, "--lambda-semantic", "0,1", "--lambda-pixel", "0.5,1"))
    assert (both["done"], both["skipped"]) == (2, 2)
    other = told_of(sweep(models_file, *words, "--lambda-pixel", "0.5,1", "--timestep", "1"))
    assert (other["done"], other["axes"]["lambda_semantic"]) == (0, [0.0, 1.0])


def test_settings_that_make_no_grid_are_refused_with_what_would(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    words = [photo_folder / "b.jpg", "-o", tmp_path / "out", "--json"]
    told_of(sweep(models_file, *words, "--lambda-semantic", "0,0.5"))
    report = (tmp_path / "out" / "table.csv").read_bytes()
    done = sweep(models_file, *words, "--lambda-pixel", "0,1", "--lambda-semantic", "0,1")
    assert done.returncode == 2
    assert "make no grid together with these: 1 of them are in neither" in done.stderr
    assert (tmp_path / "out" / "table.csv").read_bytes() == report
    found = re.search(r"hint: `(.*?)` adds those that are missing; or give another", done.stderr)
    assert found is not None
    added = told_of(sweep(models_file, *words, *shlex.split(found[1])))
    assert added["axes"] == {"lambda_pixel": [0.0, 1.0], "lambda_semantic": [0.0, 0.5, 1.0]}
    assert (added["done"], added["skipped"]) == (4, 2)
    anew = told_of(sweep(models_file, *words, "--lambda-semantic", "1", "--overwrite"))
    assert anew["axes"] == {"lambda_semantic": [1.0]}


def test_photos_that_are_not_named_again_are_told_and_stay(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    words = ["-o", tmp_path / "out", "--lambda-semantic", "0,1", "--json"]
    told_of(sweep(models_file, photo_folder, *words))
    done = sweep(models_file, photo_folder / "b.jpg", *words)
    assert told_of(done)["images"] == 1
    assert "the report leaves out `a`, `sub/c`, which earlier sweeps had" in done.stderr
    again = told_of(sweep(models_file, photo_folder, *words))
    assert (again["images"], again["skipped"]) == (3, 6)
    more = sweep(models_file, photo_folder / "b.jpg", *words, "--lambda-pixel", "0,1")
    assert told_of(more)["images"] == 1
    lacking = sweep(models_file, photo_folder, *words, "--lambda-pixel", "1")
    assert lacking.returncode == 2, "two photos have no results at 0"


def test_metrics_of_an_earlier_run_stay_in_the_report_or_are_told(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    words = [photo_folder / "b.jpg", "-o", tmp_path / "out", "--lambda-semantic", "0,1", "--json"]
    hq = ["--hq", hq_folder / "b.png"]
    both = told_of(sweep(models_file, *words, *hq))
    fewer = told_of(sweep(models_file, *words, *hq, "--metrics", "ssim"))
    assert (fewer["cells"], fewer["skipped"]) == (both["cells"], 2)
    without = sweep(models_file, *words)
    assert (told_of(without)["best"], told_of(without)["skipped"]) == ({}, 2)
    assert "the report leaves out PSNR, SSIM, which not all results have" in without.stderr
    assert told_of(sweep(models_file, *words, "--crop", "0,0,20,20"))["done"] == 2
    picked = told_of(sweep(models_file, *words, *hq, "--pick", "psnr"))
    assert picked["cells"] == both["cells"], "the results of old are not forgotten"
    last = sweep(models_file, *words, *hq)
    assert "the report leaves out crops of earlier sweeps: `--crop 0,0,20,20`" in last.stderr
    assert "`picks.csv` of an earlier sweep is gone" in last.stderr


def test_another_default_in_the_row_makes_nothing_anew(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(models_file.read_text().replace('path = "', f'path = "{models_file.parent}/'))
    settings = config(own, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="0,1")
    run_all(settings)
    own.write_text(own.read_text() + "dials = { lambda_pixel = 0.5 }\n")
    assert [done.skipped for done in open_sweep(settings).run()] == [True, True]
    both = replace(settings, lists={"lambda_semantic": "0,1"})
    assert [done.skipped for done in open_sweep(both).run()] == [True, True, False, False], "at the new default, too"


def test_a_changed_photo_is_made_again_at_all_settings_of_the_report(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="0,0.5,1")
    run_all(settings)
    (photo_folder / "a.png").rename(photo_folder / "b.jpg")
    smaller = replace(settings, lists={"lambda_semantic": "1"})
    assert [done.skipped for done in open_sweep(smaller).run()] == [False] * 3


# --- models beside each other ---


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("runs") / "other").parent


def test_one_model_of_two_is_refused_and_a_second_one_is_added(
    models_file: Path, other: Path, photo_folder: Path, tmp_path: Path
) -> None:
    words = [photo_folder / "b.jpg", "-o", tmp_path / "out", "--lambda-pixel", "0.5,1", "--save-images", "--json"]
    one = told_of(sweep(models_file, *words))
    two = told_of(sweep(models_file, *words, "--model", other))
    assert (one["done"], two["done"], two["skipped"]) == (2, 2, 2)
    assert two["axes"]["model"] == ["other", "small"]
    images = sorted(str(path.relative_to(tmp_path / "out" / "images")) for path in (tmp_path / "out" / "images").rglob("*.png"))
    key = "lambda_semantic=1,timestep=1,model=small/b.png"
    assert images == [
        *(f"lambda_pixel=0.5,{key}", "lambda_pixel=0.5,timestep=1,model=other/b.png"),
        *(f"lambda_pixel=1,{key}", "lambda_pixel=1,timestep=1,model=other/b.png"),
    ]
    again = sweep(models_file, *words)
    assert again.returncode == 2
    assert "name its models, too" in again.stderr
    assert told_of(sweep(models_file, *words, "--model", other))["skipped"] == 4


# --- folders of older versions ---


def make_older(folder: Path, swept: str) -> None:
    """Rewrite a folder as srcli wrote it before keys had all dials: those of `swept` alone, the row's among the settings."""
    (settings,) = json.loads((folder / "made_with.json").read_text()).values()
    settings["dials"] = {"lambda_pixel": 1.0, "lambda_semantic": 1.0, "timestep": 1}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    (folder / "made_with.json").write_text(json.dumps({digest: settings}))
    lines = []
    for line in (folder / "cells.jsonl").read_text().splitlines():
        record = json.loads(line)
        key = ",".join(part for part in record["cell"].split(",") if part.partition("=")[0] in swept)
        for path in [*folder.glob("cells/*"), *folder.glob("images")]:
            for found in [*path.glob(f"{record['cell']}.jpg"), *path.glob(f"{record['cell']}.*.png"), *path.glob(record["cell"])]:
                found.rename(found.with_name(found.name.replace(record["cell"], key)))
        record |= {"cell": key, "made_with": digest, "image": record["image"].replace(record["cell"], key)}
        lines.append(json.dumps(record) + "\n")
    (folder / "cells.jsonl").write_text("".join(lines))


def test_the_folder_of_an_older_version_is_gone_on_with(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    settings = config(
        models_file, photo_folder / "b.jpg", tmp_path / "out", hq=hq_folder / "b.png", crop=("0,0,20,20",), save_images=True
    )
    settings = replace(settings, lists={"lambda_semantic": "0,0.5"})
    write_outputs(run_all(settings))
    files = shown(open_sweep(settings))
    table = (tmp_path / "out" / "table.csv").read_text()
    make_older(tmp_path / "out", "lambda_semantic")
    assert shown(open_sweep(settings)) == files, "its files have their names of now"
    again = run_all(settings)
    assert all(done.skipped for done in again.run())
    write_outputs(again)
    assert (tmp_path / "out" / "table.csv").read_text() == table
    more = replace(settings, lists={"lambda_pixel": "0,1", "lambda_semantic": "0,0.5"})
    assert [done.skipped for done in open_sweep(more).run()].count(True) == 2


def test_an_older_folder_of_other_settings_is_refused_as_ever(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1")
    run_all(settings)
    make_older(tmp_path / "out", "lambda_pixel,lambda_semantic")
    with pytest.raises(UsageError, match="`color_fix` was `adain`, is `none`"):
        open_sweep(replace(settings, color_fix="none"))


def test_cells_of_other_settings_are_refused_even_where_no_cell_is_shared(
    models_file: Path, photo_folder: Path, tmp_path: Path
) -> None:
    """They would stand beside each other in one report."""
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="0")
    run_all(settings)
    with pytest.raises(UsageError, match="`color_fix` was `adain`, is `none`"):
        open_sweep(replace(settings, color_fix="none", lists={"lambda_semantic": "1"}))


def test_the_report_has_a_line_for_each_setting_of_all_runs(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", lambda_pixel="1", lambda_semantic="0,1")
    write_outputs(run_all(settings))
    write_outputs(run_all(replace(settings, lists={"lambda_semantic": "0.5"})))
    rows = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
    assert [row["lambda_semantic"] for row in rows] == ["0", "0.5", "1"]
