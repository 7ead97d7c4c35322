"""`srcli models tune`, from its arguments to the row that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Done, srcli
from PIL import Image
from tiny_model import make_model

from srcli.config.sweep import parse_values
from srcli.errors import ModelError
from srcli.evaluation import catalogue
from srcli.evaluation.catalogue import MetricInfo
from srcli.evaluation.metrics import Metric, Opened, open_metrics
from srcli.protocol.declarations import Dial
from srcli.rows.lookup import find_model
from srcli.rows.moved import moved_row
from srcli.rows.spec import packaged_models_file, read_row, user_rows_folder
from srcli.rows.toml import parse
from srcli.sweep import outputs, run
from srcli.sweep.tune import default_lists


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small photos in `lq`, and references in `hq`."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(1)
    for name in ("hq", "lq"):
        (folder / name).mkdir()
    y, x = np.mgrid[0:96, 0:128]
    for name in ("a.png", "b.png"):
        levels = np.stack([x * 2, y * 2.5, x + y], -1) % 256
        levels[20:60, 30:90] = [220, 40, 30]
        picture = Image.fromarray((levels + rng.normal(0, 6, levels.shape)).clip(0, 255).astype(np.uint8))
        picture.save(folder / "hq" / name)
        picture.resize((32, 24), Image.Resampling.BICUBIC).save(folder / "lq" / name)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


def tune(pairs: Path, name: object, *arguments: object, pick: str | None = "psnr") -> Done:
    words = ["--lq", pairs / "lq", "--hq", pairs / "hq", "--device", "cpu", "--dtype", "fp32", *arguments]
    return srcli("models", "tune", name, *words, *([] if pick is None else ["--pick", pick]))


def raw_row(file: Path, name: str) -> Mapping[str, Any]:
    faults: list[str] = []
    row: Mapping[str, Any] = parse(file, faults)["models"][name]
    assert faults == []
    return row


SEMANTIC = ("--lambda-semantic", "0,0.5")


# --- what is written ---


def test_the_row_of_a_packaged_model_is_laid_over_it_with_other_dials(pairs: Path, tmp_path: Path) -> None:
    done = tune(pairs, "tiny", *SEMANTIC, "--lambda-pixel", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    file = user_rows_folder() / "tiny.toml"
    assert (told["model"], told["images"], told["settings"], told["written"]) == ("tiny", 2, 6, str(file))
    assert (told["before"]["lambda_pixel"], told["before"]["lambda_semantic"]) == (1.0, 1.0)
    assert told["after"]["psnr"] > told["before"]["psnr"]
    assert "it takes the place of the row in" in done.stderr
    row, packaged = raw_row(file, "tiny"), raw_row(packaged_models_file(), "tiny")
    assert {key: value for key, value in row.items() if key != "dials"} == {
        key: value for key, value in packaged.items() if key != "dials"
    }
    assert row["dials"] == {dial: told["after"][dial] for dial in ("lambda_semantic", "lambda_pixel")}
    once = ["upscale", pairs / "lq" / "a.png", "--model", "tiny", "--device", "cpu"]
    shown = srcli(*once, "-o", tmp_path / "1.png")
    assert shown.returncode == 0, shown.stderr
    turned = ["--lambda-pixel", told["after"]["lambda_pixel"], "--lambda-semantic", told["after"]["lambda_semantic"]]
    assert "removed the row" in srcli("models", "remove", "tiny").stderr
    srcli(*once, "-o", tmp_path / "2.png", *turned)
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_a_row_that_moves_takes_the_places_of_its_files_along(pairs: Path, small: Path, tmp_path: Path) -> None:
    done = tune(pairs, small.parent, *SEMANTIC)
    assert done.returncode == 0, done.stderr
    assert "before" in done.stdout
    file = user_rows_folder() / "small.toml"
    row = raw_row(file, "small")
    assert row["base"]["path"] == str(small.parent / "base")
    assert Path(row["adapters"]["pixel"]["path"]).is_absolute()
    assert row["description"] == "a test"
    done = srcli("upscale", pairs / "lq" / "a.png", "-o", tmp_path / "1.png", "--model", "small", "--device", "cpu")
    assert done.returncode == 0, done.stderr


def test_a_row_in_its_own_file_stays_as_it_is_but_for_the_dials(pairs: Path, tmp_path: Path) -> None:
    file = make_model(tmp_path / "model", semantic=True)
    file.write_text("# mine\n" + file.read_text() + "dials = { timestep = 5 }\n")
    before = raw_row(file, "small")
    done = tune(pairs, "small", *SEMANTIC, "--models-file", file)
    assert done.returncode == 0, done.stderr
    row = raw_row(file, "small")
    assert {**row, "dials": None} == {**before, "dials": None}
    assert (row["dials"]["timestep"], set(row["dials"])) == (5, {"timestep", "lambda_semantic"})
    assert file.read_text().startswith("# mine\n")
    assert not user_rows_folder().exists()


def test_another_name_leaves_the_model_as_it_is(pairs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    done = tune(pairs, "tiny", *SEMANTIC, "--as", "tuned", "--models-file", file)
    assert done.returncode == 0, done.stderr
    assert list(parse(file, [])["models"]) == ["tuned"]
    assert find_model("tiny").origin == packaged_models_file()
    taken = tune(pairs, "tiny", *SEMANTIC, "--as", "tuned", "--models-file", file)
    assert (taken.returncode, "model `tuned` exists" in taken.stderr) == (2, True)


def test_a_dry_run_writes_nothing_and_the_sweep_is_kept_where_it_is_asked_for(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "write_plots", lambda table, folder: [])  # they take seconds
    done = tune(pairs, "tiny", *SEMANTIC, "--dry-run", "-o", tmp_path / "sweep", pick="ssim, psnr >= 5")
    assert done.returncode == 0, done.stderr
    assert "it would be written into the row of `tiny`" in done.stderr
    assert not user_rows_folder().exists()
    assert (tmp_path / "sweep" / "index.html").is_file()
    again = tune(pairs, "tiny", *SEMANTIC, "--dry-run", "-o", tmp_path / "sweep", "--json", pick="ssim, psnr >= 5")
    assert json.loads(again.stdout)["written"] is None


def test_defaults_that_are_the_best_already_are_not_written_again(pairs: Path) -> None:
    first = tune(pairs, "tiny", *SEMANTIC)
    assert "wrote the row" in first.stderr
    second = tune(pairs, "tiny", *SEMANTIC)
    assert (second.returncode, "are the best of these settings" in second.stderr) == (0, True)


# --- what is refused ---


def test_where_no_setting_meets_the_floor_nothing_is_written(pairs: Path) -> None:
    done = tune(pairs, "tiny", *SEMANTIC, pick="ssim, psnr >= 99, ssim >= bicubic")
    assert done.returncode == 1
    assert "no setting of `tiny` has psnr >= 99 and ssim >= bicubic on average: the highest PSNR is " in done.stderr
    assert "and bicubic has 0." in done.stderr
    assert not user_rows_folder().exists()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tiny", ["--as", "a b"], "`a b` cannot be a row's name"),
        ("tiny", ["--as", "pisa-sr"], "model `pisa-sr` exists"),
        ("tiny", ["--overwrite"], "`--overwrite` is used with `--keep` only"),
        ("tiny", ["--lambda-pixel", "0:x"], "--lambda-pixel 0:x"),
        ("tiny", ["--strength", "0,1"], "has no dial `--strength`"),
        ("tiny", ["--pick", "psnr >= 3"], "picked by one metric, and it names none"),
        ("nowhere", [], "unknown model `nowhere`"),
    ],
)
def test_wrong_use_is_told_before_the_work(pairs: Path, name: str, options: list[str], words: str) -> None:
    done = tune(pairs, name, *SEMANTIC, *options, pick=None if "--pick" in options else "psnr")
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "srcli sweep --help" not in done.stderr


# --- the default rule and the default values ---

FEATURES = MetricInfo("features", "Features", "a stand-in", False, True, 4)


def test_the_default_rule_needs_its_metric_or_another_rule(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.METRICS, "features", FEATURES)
    missing = Opened((), None, {"features": ModelError("it needs a package", "pip install 'srcli[features]'")})
    monkeypatch.setattr(run, "open_metrics", lambda names, device, crop_border: missing)
    done = tune(pairs, "tiny", *SEMANTIC, pick=None)
    assert done.returncode == 2
    assert "pip install 'srcli[features]'; or pick by another metric" in done.stderr


def test_the_default_rule_is_the_best_features_not_below_bicubic(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in that says how far the contrast is from the reference's."""

    def contrast(sr: np.ndarray, hq: np.ndarray | None) -> float:
        assert hq is not None
        return abs(float(sr.std()) - float(hq.std()))

    def opened(names: tuple[str, ...], device: Any, crop_border: int) -> Opened:
        others = open_metrics([name for name in names if name != "features"], device)
        return replace(others, metrics=(*others.metrics, Metric(FEATURES, contrast)))

    monkeypatch.setitem(catalogue.METRICS, "features", FEATURES)
    monkeypatch.setattr(run, "open_metrics", opened)
    done = tune(pairs, "tiny", "--lambda-pixel", "0.5,1", "--lambda-semantic", "0", "--json", pick=None)
    told = json.loads(done.stdout)
    assert told["picked_by"] == "features, psnr >= bicubic"
    assert told["after"]["psnr"] >= told["bicubic"]["psnr"]
    assert "features" in told["before"]


def test_values_are_tried_over_the_usual_range_or_what_makes_sense() -> None:
    dials = (
        *find_model("tiny").dials,
        Dial("found", "f", "", None, 0, 1),
        Dial("endless", "e", "", 1.0, 0),
        Dial("narrow", "n", "", 1, 1, 3, whole=True),
    )
    assert {name: parse_values(text) for name, text in default_lists(dials).items()} == {
        "lambda_pixel": (0, 0.5, 1, 1.5, 2),
        "lambda_semantic": (0, 0.5, 1, 1.5, 2),
        "timestep": (0, 250, 500, 749, 999),
        "narrow": (1, 2, 3),
    }


# --- rows that move ---


def test_imported_adapters_are_where_they_were_imported_under_a_new_name(tmp_path: Path) -> None:
    spec = find_model("pisa-sr")
    assert moved_row(spec, "pisa-sr", tmp_path)["adapters"]["pixel"] == {"import": "pisa_sr.pkl"}
    row = moved_row(spec, "mine", tmp_path)
    assert row["adapters"]["pixel"]["path"] == spec.adapters["pixel"].path
    assert row["base"]["repo"] == spec.base.repo


@pytest.mark.parametrize("path", ["tiny", "../x/y.safetensors", "tiny/../../y.safetensors", "/etc/passwd", ""])
def test_an_embedded_adapter_is_a_file_of_a_model_that_ships(tmp_path: Path, path: str) -> None:
    row = {**raw_row(packaged_models_file(), "tiny"), "adapters": {"pixel": {"embedded": path, "sha256": "0" * 64}}}
    with pytest.raises(ModelError, match="`embedded` must be a file of a model that ships with srcli"):
        read_row("a", row, tmp_path / "a.toml")
    row["adapters"] = {"pixel": {"embedded": "tiny/x.safetensors", "path": "x", "sha256": "0" * 64}}
    with pytest.raises(ModelError, match="`path` and `embedded` exclude each other"):
        read_row("a", row, tmp_path / "a.toml")


def test_removing_the_row_over_an_imported_model_leaves_its_adapters(own_folders: Path) -> None:
    from srcli.rows.imported import imported_folder
    from srcli.rows.user_rows import add_user_row

    folder = imported_folder("pisa-sr")
    folder.mkdir(parents=True)
    spec = find_model("pisa-sr")
    add_user_row("pisa-sr", {**moved_row(spec, "pisa-sr", user_rows_folder()), "dials": {"lambda_semantic": 0.5}})
    done = srcli("models", "remove", "pisa-sr")
    assert (done.returncode, folder.is_dir(), find_model("pisa-sr").origin) == (0, True, packaged_models_file())
