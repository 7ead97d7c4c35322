"""By what rule settings are picked: as it is typed, over a table, and from the command line."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Done, srcli
from PIL import Image
from rich.console import Console
from sweep_case import config, run_all
from tiny_model import make_model

from srcli.config.rule import Floor, parse_rule
from srcli.evaluation.catalogue import METRICS
from srcli.sweep import outputs, plots, run
from srcli.sweep.grid import Axis, Grid
from srcli.sweep.outputs import write_outputs
from srcli.sweep.page import Page
from srcli.sweep.tables import TRADE_OFF, Table
from srcli.sweep.views import Views

# --- as it is typed ---


def test_a_rule_is_one_metric_and_any_floors() -> None:
    assert parse_rule("psnr").floors == ()
    rule = parse_rule(" LPIPS ,psnr>=bicubic, ssim >= 0.8,ssim <= .95, psnr >= bicubic")
    assert rule.metric == "lpips"
    assert rule.floors == (Floor("psnr", ">=", None), Floor("ssim", ">=", 0.8), Floor("ssim", "<=", 0.95))
    assert rule.metrics == ("lpips", "psnr", "ssim")
    assert rule.plain
    assert parse_rule(rule.text) == rule
    assert not parse_rule("lpips, psnr >= -1e1").plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["a part is missing between commas"]),
        ("best", ["`best` is none of psnr, ssim"]),
        ("fid", ["`fid` is one value for a set of pictures"]),
        ("psnr, ssim", ["picked by one metric, and it names `psnr` and `ssim`"]),
        ("psnr >= 20", ["picked by one metric, and it names none"]),
        ("ssim, psnr > 20", ["`psnr > 20` needs `>=` or `<=`"]),
        ("ssim, psnr = 20", ["`psnr = 20` needs `>=` or `<=`"]),
        ("ssim, psnr >= nearest", ["`nearest` in `psnr >= nearest` is neither a number nor `bicubic`"]),
        ("ssim, psnr >=", ["`` in `psnr >=` is neither"]),
        ("ssim, psnr >= nan", ["is not finite"]),
        ("ssim, >= 20", ["`>= 20` names no metric"]),
        ("ssim, fid <= 20", ["`fid` is one value"]),
        ("ssim, psnr >= 30, psnr <= 20", ["no value has `psnr >= 30` and `psnr <= 20`"]),
        ("good, psnr > x,", ["`good` is none", "`psnr > x` needs", "`x` in `psnr > x` is neither", "missing between commas"]),
    ],
)
def test_all_faults_of_a_rule_are_told(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        parse_rule(text)
    for word in words:
        assert word in str(caught.value)


# --- over a table ---


def made_table(rule: str | None = None, plain: float = 28.2) -> Table:
    """PSNR falls with d; LPIPS, where less is better, has its best at 2; photo `two` has 1 dB more, and bicubic 0.5 dB less."""
    grid = Grid((Axis("d", "d", "", ("0", "1", "2", "3"), (0.0, 1.0, 2.0, 3.0), 0),))
    photos = {
        name: {cell.key: {"psnr": 30 - cell.place[0] + shift, "lpips": 0.2 + 0.1 * abs(cell.place[0] - 2)} for cell in grid.cells}
        for name, shift in (("one", 0.0), ("two", 1.0))
    }
    baseline = {"one": {"psnr": plain, "lpips": 0.5}, "two": {"psnr": plain - 0.5, "lpips": 0.5}}
    parsed = parse_rule(rule) if rule else None
    with_plain = baseline if parsed is not None and parsed.plain else {}
    return Table(grid, (METRICS["psnr"], METRICS["lpips"]), photos, parsed, with_plain)


def test_floors_hold_for_each_photo_and_for_the_means() -> None:
    table = made_table("lpips, psnr >= bicubic")
    assert {photo: cell and cell.place for photo, cell in table.picks().items()} == {"one": (1,), "two": (2,)}
    choice = table.choice()
    assert choice is not None
    assert choice.place == (2,), "28.5 of 27.95 on average"
    assert table.best()["lpips"].place == (2,)
    told = table.as_json()
    assert (told["picked_by"], told["picked"]["d"], told["bicubic"]["psnr"]) == ("lpips, psnr >= bicubic", 2.0, 27.95)
    assert told["picks"]["one"] == {"d": 1.0, "psnr": 29.0, "lpips": pytest.approx(0.3)}
    ceiling = made_table("psnr, lpips <= 0.25").choice()
    assert ceiling is not None
    assert ceiling.place == (2,)


def test_where_no_setting_meets_the_floors_there_is_none() -> None:
    table = made_table("lpips, psnr >= 30.6")
    told = table.as_json()
    assert (told["picked"], told["picks"]["one"], told["picks"]["two"]["d"]) == (None, None, 0.0)
    assert table.picks_csv().splitlines() == ["image,d,lpips,psnr", "one,,,", "two,0,0.4,31"]
    assert "- best by `lpips, psnr >= 30.6`: none" in table.as_markdown()


def test_the_plain_input_has_a_row_of_its_own_where_it_is_asked_for() -> None:
    table = made_table("lpips, psnr >= bicubic")
    assert table.as_csv().splitlines()[-1] == "bicubic,27.95,0.5"
    assert [line for line in table.per_photo_csv().splitlines() if "bicubic" in line] == [
        "one,bicubic,28.2,0.5",
        "two,bicubic,27.7,0.5",
    ]
    assert "| bicubic | 27.95 | 0.5000 |" in table.as_markdown()
    plain = made_table("lpips, psnr >= 20")
    assert "bicubic" not in plain.as_csv() + plain.as_markdown() + plain.per_photo_csv() + json.dumps(plain.as_json())


def test_settings_that_no_other_beats_in_both_axes_are_marked(tmp_path: Path) -> None:
    table = made_table()
    assert [cell["d"] for cell in table.as_json()["trade_offs"]["lpips"]] == [2.0, 1.0, 0.0]
    marked = [line for line in table.as_markdown().splitlines() if line.startswith("|") and TRADE_OFF in line]
    assert [line.split("|")[1].strip() for line in marked] == ["0", "1", "2"]
    assert f"{TRADE_OFF} no other setting beats it in PSNR and LPIPS" in table.as_markdown()
    shown = io.StringIO()
    Console(file=shown, width=200).print(table.as_rich(40))
    assert [line.split()[1] == TRADE_OFF for line in shown.getvalue().splitlines()[3:7]] == [True, True, True, False]
    page = Page("t", table, (), Views(tmp_path, ())).html(lambda path: "")
    rows = [row for row in page.split("<tr data-cell=")[1:] if TRADE_OFF in row.split("</tr>")[0]]
    assert len(rows) == 3
    only_fidelity = replace(table, infos=(METRICS["psnr"],))
    assert "trade_offs" not in only_fidelity.as_json()
    assert TRADE_OFF not in only_fidelity.as_markdown()


def test_the_plot_marks_them_and_bicubic(tmp_path: Path) -> None:
    svg = plots.write_plots(made_table("lpips, psnr >= bicubic"), tmp_path)[-1].svg.read_text(encoding="utf-8")
    assert "best trade-offs" in svg
    assert "bicubic" in svg


# --- from the command line ---


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds."""
    monkeypatch.setattr(outputs, "write_plots", lambda table, folder: [])


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


def sweep(models_file: Path, *arguments: object) -> Done:
    return srcli("sweep", *arguments, "--models-file", models_file, "--model", "small", "--device", "cpu", "--dtype", "fp32")


@pytest.mark.usefixtures("no_plots")
def test_the_plain_input_is_measured_once_a_photo_and_is_that_of_eval(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = [photo_folder, "-o", out, "--hq", hq_folder, "--lambda-pixel", "0,1", "--json"]
    without = sweep(models_file, *words)
    assert "bicubic" not in without.stdout + (out / "table.csv").read_text() + (out / "index.html").read_text()
    done = sweep(models_file, *words, "--pick", "ssim, psnr >= bicubic")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["done"], told["skipped"]) == (0, 6)
    evaluated = json.loads(
        srcli("eval", "--lq", photo_folder, "--hq", hq_folder, "--baseline", "bicubic", "--scale", 4, "--json").stdout
    )
    assert told["bicubic"] == pytest.approx(evaluated["methods"]["bicubic"])
    assert ">bicubic</td>" in (out / "index.html").read_text()
    records = (out / "cells.jsonl").read_text()
    assert records.count('"cell": "bicubic"') == 3
    monkeypatch.setattr(run, "resample_u8", None)  # nothing is enlarged again
    assert sweep(models_file, *words, "--pick", "ssim, psnr >= bicubic").returncode == 0
    assert (out / "cells.jsonl").read_text() == records


@pytest.mark.usefixtures("no_plots")
def test_photos_without_a_setting_above_the_floor_are_named(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    words = [photo_folder, "-o", tmp_path / "out", "--hq", hq_folder, "--lambda-semantic", "0,1", "--json"]
    sweep(models_file, *words)
    lines = list(csv.DictReader((tmp_path / "out" / "per_image.csv").read_text().splitlines()))
    best = {name: max(float(line["psnr"]) for line in lines if line["image"] == name) for name in ("a", "b", "sub/c")}
    first, second, _ = sorted(best, key=lambda name: best[name])
    floor = round((best[first] + best[second]) / 2, 6)
    done = sweep(models_file, *words, "--pick", f"ssim, psnr >= {floor}")
    assert done.returncode == 0, done.stderr
    assert f"no setting has psnr >= {floor:.10g} of `{first}`\n" in done.stderr
    told = json.loads(done.stdout)
    assert [name for name, pick in told["picks"].items() if pick is None] == [first]
    rows = list(csv.DictReader((tmp_path / "out" / "picks.csv").read_text().splitlines()))
    assert [row["lambda_semantic"] == "" for row in rows] == [name == first for name in told["picks"]]
    none = sweep(models_file, *words, "--pick", "ssim, psnr >= 99")
    assert "no setting has psnr >= 99 on average" in none.stderr
    assert json.loads(none.stdout)["picked"] is None


def test_a_bad_rule_is_refused_before_anything_is_written(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    done = sweep(models_file, photo_folder, "-o", tmp_path / "out", "--lambda-pixel", "1", "--pick", "good, psnr > 3")
    assert done.returncode == 2
    for words in ("--pick good, psnr > 3", "`good` is none of", "`psnr > 3` needs `>=` or `<=`"):
        assert words in done.stderr
    without = sweep(models_file, photo_folder, "-o", tmp_path / "out", "--lambda-pixel", "1", "--pick", "niqe, psnr >= bicubic")
    assert without.returncode == 2
    assert "`psnr` compare with a reference: give `--hq`" in without.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_plots")
def test_the_picture_with_a_frame_is_the_one_that_the_rule_picks(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    settings = config(models_file, photo_folder / "a.png", tmp_path / "1", hq=hq_folder / "a.png", lambda_pixel="1")
    write_outputs(run_all(replace(settings, pick="psnr")))
    write_outputs(run_all(replace(settings, pick="psnr, ssim >= 2", output=tmp_path / "2")))
    colors = [Image.open(tmp_path / name / "sheets" / "a.png").getcolors(1 << 20) for name in "12"]
    frames = [(255, 190, 40) in {color for _, color in each or ()} for each in colors]
    assert frames == [True, False]
