"""What a sweep shows: grid, tables, plots and contact sheets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sweep_case import config, run_all, with_lists
from tiny_model import make_model

from srcli.config.rule import parse_rule
from srcli.errors import ModelError, SrcliError
from srcli.evaluation.catalogue import METRICS
from srcli.evaluation.metrics import Metric, Opened
from srcli.images.fidelity import psnr_y, ssim_y
from srcli.protocol.declarations import Dial
from srcli.sweep import plots, run
from srcli.sweep.grid import Axis, Grid, dial_axes, model_axis, short_names
from srcli.sweep.outputs import write_outputs
from srcli.sweep.picking import pareto
from srcli.sweep.run import open_sweep
from srcli.sweep.tables import Table
from srcli.sweep.views import HQ, LQ, thumbnail


@pytest.fixture(scope="module")
def models_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), semantic=True)


# --- the grid ---


def grid(*sizes: int) -> Grid:
    return Grid(
        tuple(Axis(f"d{i}", f"d{i}", "", tuple(map(str, range(n))), tuple(map(float, range(n))), 0) for i, n in enumerate(sizes))
    )


def test_the_first_axis_goes_up_the_second_across_and_others_make_planes() -> None:
    drawn = grid(2, 3, 2)
    planes = drawn.planes()
    assert [name for name, _ in planes] == ["d2=0", "d2=1"]
    places = [[cell.place for cell in row] for row in planes[1][1]]
    assert places == [[(1, 0, 1), (1, 1, 1), (1, 2, 1)], [(0, 0, 1), (0, 1, 1), (0, 2, 1)]]


def test_an_axis_of_one_value_takes_no_room() -> None:
    (plane,) = grid(1, 4, 1).planes()
    assert plane[0] == ""
    assert [[cell.place[1] for cell in row] for row in plane[1]] == [[0, 1, 2, 3]]
    assert grid(1, 1).planes()[0][1] == [[grid(1, 1).cells[0]]]


def test_no_two_values_or_adapters_look_alike() -> None:
    close = (0.12345678901, 0.12345678902, 0.5)
    (axis,) = dial_axes([[Dial("d", "d", "", 0.5)]], {"d": close})
    assert axis.texts == ("0.12345678901", "0.12345678902", "0.5")
    assert short_names([Path("x/a-b/c"), Path("x/a/b-c"), Path("x/a/b,c")]) == ["a-b-c", "a-b-c-2", "a-b_c"]


def test_cells_are_found_by_place_and_lines_run_along_one_axis() -> None:
    drawn = grid(2, 3)
    assert [drawn.at(cell.place) for cell in drawn.cells] == list(drawn.cells)
    assert [cell.place for cell in drawn.line(1, (1, 0))] == [(1, 0), (1, 1), (1, 2)]


def test_adapters_are_called_by_what_tells_them_apart() -> None:
    assert short_names([Path("runs/r4/semantic"), Path("runs/r8/semantic")]) == ["r4", "r8"]
    assert short_names([Path("a/x"), Path("a/b/x")]) == ["x", "b-x"]
    assert short_names([Path("one/two")]) == ["two"]
    axis = model_axis(["tiny", "runs/tiny/x.pth", "runs/b/x.pth", "b"], ["tiny", "x", "x", "b"])
    assert axis.texts == ("tiny", "tiny-2", "b", "b-2")


def test_a_default_is_one_where_all_models_have_it() -> None:
    models = [[Dial("d", "d", "", 0.5), Dial("e", "e", "", 1)], [Dial("e", "e", "", 1), Dial("d", "d", "", 0)]]
    d, e = dial_axes(models, {"d": (0, 0.5), "e": (1, 2)})
    assert (d.default, e.default) == (None, 0)


# --- numbers ---


def test_metrics_are_those_of_the_written_images(models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path) -> None:
    Image.open(photo_folder / "a.png").convert("L").save(photo_folder / "a.png")  # a gray one is written gray
    sweep = run_all(config(models_file, photo_folder, tmp_path / "out", lambda_pixel="0.3", hq=hq_folder, save_images=True))
    for photo in sweep.photos:
        assert photo.hq is not None
        hq = np.asarray(Image.open(photo.hq).convert("RGB"))
        for cell in sweep.grid.cells:
            sr = np.asarray(Image.open(sweep.image_path(photo, cell)).convert("RGB"))
            expected = {"psnr": psnr_y(sr, hq), "ssim": ssim_y(sr, hq)}
            assert sweep.record(photo, cell).metrics == pytest.approx(expected, abs=1e-9)


def made_table(pick: str | None = None) -> Table:
    """PSNR falls with d0 and d1; LPIPS, where less is better, has its best in the middle of d1."""
    drawn = grid(2, 3)
    photos = {}
    for name, shift in (("one", 0.0), ("two", 1.0)):
        best = 1 + (name == "two")
        photos[name] = {
            cell.key: {"psnr": 30 - cell.place[0] - 0.5 * cell.place[1] + shift, "lpips": 0.2 + 0.1 * abs(cell.place[1] - best)}
            for cell in drawn.cells
        }
    return Table(drawn, (METRICS["psnr"], METRICS["lpips"]), photos, parse_rule(pick) if pick else None)


def test_the_best_setting_of_each_metric_and_of_each_photo() -> None:
    table = made_table(pick="lpips")
    assert {name: cell.place for name, cell in table.best().items()} == {"psnr": (0, 0), "lpips": (0, 1)}
    assert {name: cell.place for name, cell in table.picks().items()} == {"one": (0, 1), "two": (0, 2)}
    told = table.as_json()
    assert told["best"]["psnr"] == {"d0": 0.0, "d1": 0.0, "psnr": 30.5, "lpips": pytest.approx(0.35)}
    assert told["picks"]["two"] == {"d0": 0.0, "d1": 2.0, "lpips": pytest.approx(0.2)}
    assert told["picked_by"] == "lpips"


def test_the_table_is_like_the_papers_one_dial_at_a_time_then_all() -> None:
    text = made_table().as_markdown()
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["## d0 at d1 = 0", "## d1 at d0 = 0", "## All settings"]
    first = text.split("## ")[1]
    assert [line.split("|")[1:3] for line in first.splitlines() if line.startswith("| 0") or line.startswith("| 1")] == [
        [" 0 ", " 0 "],
        [" 1 ", " 0 "],
    ]
    assert "| 0 | 0 | **30.50** |" in text
    assert "- best LPIPS: 0.2500 at d0 = 0, d1 = 1" in text
    assert "2 images" in text


def test_the_csv_has_a_line_per_setting_and_the_other_one_per_photo() -> None:
    lines = made_table().as_csv().splitlines()
    assert lines[0] == "d0,d1,psnr,lpips"
    assert lines[1] == "0,0,30.5,0.35"
    assert len(lines) == 7
    assert len(made_table().per_photo_csv().splitlines()) == 13
    assert made_table("psnr").picks_csv().splitlines()[1] == "one,0,0,30"
    named = replace(made_table(), photos={"=1+1;": made_table().photos["one"]})
    assert named.per_photo_csv().splitlines()[1].startswith('"\'=1+1;",0,0,'), "no formula, and one cell"


def test_an_infinite_mean_is_a_text_in_json() -> None:
    table = made_table()
    endless = {
        name: {key: {**each, "psnr": float("inf")} for key, each in values.items()} for name, values in table.photos.items()
    }
    told = json.dumps(replace(table, photos=endless).as_json(), allow_nan=False)
    assert json.loads(told)["cells"][0]["psnr"] == "Infinity"


def test_the_best_trade_offs_are_those_that_nothing_beats() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (1.0, 1.0), (3.0, 1.0), (2.0, float("nan")), (2.0, 2.0)]
    assert pareto(points, True, True) == [0, 1, 5, 3]
    assert pareto(points, True, False) == [3]
    assert pareto([], True, True) == []


def test_plots_are_drawn_of_each_metric_against_each_dial_and_of_the_trade_off(tmp_path: Path) -> None:
    drawn = plots.write_plots(made_table(), tmp_path)
    titles = [plot.title for plot in drawn]
    assert titles == [
        *("PSNR against d0", "PSNR against d1", "LPIPS against d0", "LPIPS against d1"),
        "Fidelity and perception: LPIPS against PSNR",
    ]
    for plot in drawn:
        with Image.open(plot.png) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 20
        assert plot.svg.read_text(encoding="utf-8").startswith("<?xml")
    again = plots.write_plots(made_table(), tmp_path / "again")
    assert again[4].svg.read_bytes() == drawn[4].svg.read_bytes()


def test_without_matplotlib_the_plots_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        plots.write_plots(made_table(), tmp_path)
    assert "srcli[eval]" in caught.value.hint


# --- sheets ---


def test_the_sheet_has_semantic_across_pixel_up_and_input_and_reference_beside(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    settings = config(
        models_file, photo_folder / "a.png", tmp_path / "out", hq=hq_folder / "a.png", crop=("200,100,40,30",), cell_px=112
    )
    sweep = run_all(with_lists(replace(settings, color_fix="none"), lambda_pixel="0,1"))
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheets" / "a.png"))
    beside, rest = sheet[:, :150], sheet[:, 150:]
    found = {key: place_of(beside, thumbnail(sweep.views.whole("a", key), 112)) for key in (LQ, HQ)}
    for cell in sweep.grid.cells:
        found[cell.key] = place_of(rest, thumbnail(sweep.views.whole("a", cell.key), 112))
    tops = [found[cell.key][0] for cell in sweep.grid.cells]
    lefts = [found[cell.key][1] for cell in sweep.grid.cells]
    assert sorted(set(tops)) == [tops[4], tops[0]]  # the larger λ_pix is higher up
    assert lefts[:4] == lefts[4:] == sorted(set(lefts))
    assert found[HQ][1] == found[LQ][1]
    assert found[HQ][0] > found[LQ][0]
    close = np.asarray(Image.open(tmp_path / "out" / "sheets" / "a.crop-200-100-40-30.png"))
    best = thumbnail(sweep.views.crop("a", sweep.grid.cells[5].key, sweep.views.crops[0]), 112)
    assert best.shape == (60, 80, 3)  # each pixel is two by two
    place_of(close, best)


def place_of(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """(top, left) of the best fit of the picture's inner part; asserts that it is there."""
    import cv2

    part = np.ascontiguousarray(picture[6:-6, 6:-6])  # frames lie over the edges
    fit = cv2.matchTemplate(sheet, part, cv2.TM_SQDIFF)
    top, left = np.unravel_index(fit.argmin(), fit.shape)
    cut = sheet[top : top + part.shape[0], left : left + part.shape[1]].astype(int)
    assert (np.abs(cut - part).max(axis=2) > 0).mean() < 0.05  # but for where a crop is marked
    return int(top), int(left)


def test_crops_are_cut_in_full_resolution(models_file: Path, photo_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "a.png", tmp_path / "out", crop=("30,40,50,60",), save_images=True)
    sweep = run_all(settings)
    cell = sweep.grid.cells[-1]
    whole = np.asarray(Image.open(sweep.image_path(sweep.photos[0], cell)))
    cut = np.asarray(Image.open(sweep.views.crop("a", cell.key, sweep.views.crops[0])))
    assert np.array_equal(cut, whole[40:100, 30:80])


# --- a metric that is a network ---


@pytest.fixture
def with_lpips(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A perceptual metric without its network: how far the second differences are from the reference's."""

    def detail(picture: np.ndarray) -> float:
        return float(np.abs(np.diff(picture.astype(float), n=2, axis=0)).mean())

    def score(sr: np.ndarray, hq: np.ndarray | None) -> float:
        assert hq is not None
        return abs(detail(sr) - detail(hq)) / 10

    psnr = Metric(METRICS["psnr"], lambda sr, hq: psnr_y(sr, hq) if hq is not None else 0.0)
    opened = Opened((psnr, Metric(METRICS["lpips"], score)), None, {})
    monkeypatch.setattr(run, "open_metrics", lambda names, device, crop_border: opened)
    return


@pytest.mark.usefixtures("with_lpips")
def test_a_sweep_with_a_perceptual_metric_draws_the_fidelity_perception_curve(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    outputs = write_outputs(run_all(config(models_file, photo_folder, tmp_path / "out", hq=hq_folder, pick="lpips")))
    assert (tmp_path / "out" / "plots" / "lpips-psnr.svg").is_file()
    assert outputs.told["images"] == 3
    assert set(outputs.told["picks"]) == {"a", "b", "sub/c"}
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == outputs.told
    picked = (tmp_path / "out" / "picks.csv").read_text().splitlines()
    assert picked[0] == "image,lambda_pixel,lambda_semantic,lpips"
    assert len(picked) == 4


def test_a_pick_that_cannot_be_computed_is_refused_at_once(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Opened((), None, {"lpips": ModelError("`lpips` needs a package", "get it")})
    monkeypatch.setattr(run, "open_metrics", lambda names, device, crop_border: missing)
    with pytest.raises(ModelError, match="--pick lpips"):
        open_sweep(config(models_file, photo_folder, tmp_path / "out", hq=hq_folder, pick="lpips"))


# --- files that make trouble ---


def test_a_name_that_is_no_utf8_is_written_as_it_is(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(b"caf\xe9")
    (photo_folder / "b.jpg").rename(photo_folder / f"{name}.jpg")
    (hq_folder / "b.png").rename(hq_folder / f"{name}.png")
    settings = config(models_file, photo_folder, tmp_path / "out", hq=hq_folder, lambda_pixel="1", pick="psnr")
    outputs = write_outputs(run_all(settings))
    assert os.fsencode(name) in (tmp_path / "out" / "per_image.csv").read_bytes()
    assert b"caf%E9" in outputs.page.read_bytes()


@pytest.mark.parametrize("name", ["table.json", "index.html", "plots", "per_image.csv"])
def test_outputs_that_cannot_be_written_are_told(
    models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path, name: str
) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", hq=hq_folder / "b.png", lambda_pixel="1")
    sweep = run_all(settings)
    if name == "plots":
        (tmp_path / "out" / name).write_text("")
    else:
        (tmp_path / "out" / name).mkdir()
    with pytest.raises(SrcliError, match=f"{name}.* cannot be written"):
        write_outputs(sweep)


def test_picks_of_an_earlier_run_do_not_stay(models_file: Path, photo_folder: Path, hq_folder: Path, tmp_path: Path) -> None:
    settings = config(models_file, photo_folder / "b.jpg", tmp_path / "out", hq=hq_folder / "b.png", lambda_pixel="1")
    write_outputs(run_all(replace(settings, pick="psnr")))
    assert (tmp_path / "out" / "picks.csv").is_file()
    write_outputs(run_all(settings))
    assert not (tmp_path / "out" / "picks.csv").exists()
