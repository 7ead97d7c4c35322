"""The page of a sweep, in text and in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import browser
import numpy as np
import pytest
from browser import ARROW_LEFT, ARROW_RIGHT, END, Browser
from PIL import Image
from tiny_model import make_model

from srcli.config.rule import parse_rule
from srcli.config.sweep import SweepConfig
from srcli.sweep import page as page_module
from srcli.sweep.outputs import table_of, write_outputs
from srcli.sweep.page import Page
from srcli.sweep.plots import Plot
from srcli.sweep.run import Sweep, open_sweep

needs_browser = pytest.mark.skipif(bool(browser.why_not()), reason=browser.why_not() or "there is one")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two photos with references, a crop, 3 x 2 settings and two timesteps; names that HTML and URLs must escape."""
    folder = tmp_path_factory.mktemp("swept")
    rng = np.random.default_rng(5)
    (folder / "hq" / "sub").mkdir(parents=True)
    (folder / "lq" / "sub").mkdir(parents=True)
    for name in ("a & <b> #1?.png", "sub/c.png"):
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        picture.resize((96, 72), Image.Resampling.BICUBIC).save(folder / "hq" / name)
        picture.resize((24, 18), Image.Resampling.BICUBIC).save(folder / "lq" / name)
    settings = SweepConfig(
        inputs=(str(folder / "lq"),),
        output=folder / "out",
        lists={"lambda_pixel": "0,1,2", "lambda_semantic": "0,1", "timestep": "1,500"},
        model=("small",),
        models_file=make_model(folder / "model", semantic=True),
        hq=folder / "hq",
        crop=("8,8,32,24",),
        pick="psnr",
        device="cpu",
        dtype="fp32",
    )
    sweep = open_sweep(settings)
    for _ in sweep.run():
        pass
    write_outputs(sweep)
    return sweep


def page_of(sweep: Sweep, plots: tuple[Plot, ...] = (), embed_bytes: int = page_module.EMBED_BYTES) -> Page:
    return Page("A <sweep>", table_of(sweep), sweep.complete, sweep.views, plots, embed_bytes)


def sources(html: str) -> list[str]:
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    found = re.findall(r'<img [^>]*src="([^"]*)"', html)
    for photo in data["photos"]:
        for each in (photo, *photo["crops"]):
            found += [each["lq"], each["hq"], *each["cells"]]
    return found


def test_a_small_sweep_is_one_file_without_any_reference_to_others(swept: Sweep) -> None:
    html = (swept.config.output / "index.html").read_text()
    found = sources(html)
    assert len(found) >= 2 * 2 * (2 + 12)
    assert all(source.startswith("data:image/") for source in found)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", html)
    assert "<script src" not in html
    assert "<link" not in html


def test_beyond_the_limit_pictures_are_files_beside_the_page(swept: Sweep) -> None:
    from urllib.parse import unquote

    path = page_of(swept, embed_bytes=1000).write()
    found = sources(path.read_text())
    write_outputs(swept)
    assert found
    assert not [source for source in found if not (path.parent / unquote(source)).is_file()]
    assert not [source for source in found if source.startswith(("/", "data:", "file:"))]


def test_names_are_escaped(swept: Sweep) -> None:
    html = (swept.config.output / "index.html").read_text()
    assert "a &amp; &lt;b&gt; #1?" in html
    assert "<b>" not in html
    assert "<title>A &lt;sweep&gt;</title>" in page_of(swept).html(lambda path: "x")


def test_without_metrics_there_are_no_empty_tables(swept: Sweep) -> None:
    plain = page_of(swept)
    html = replace(plain, table=replace(plain.table, infos=(), pick=None)).html(lambda path: "x")
    assert 'id="table"' not in html
    assert 'id="plots"' not in html
    assert 'href="#plots"' not in html


# --- in a browser ---


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


SHOWN = """
    const image = document.querySelector("#whole img.sr");
    const caption = document.querySelector("#whole img.sr + figcaption");
    return [image.currentSrc, image.complete ? image.naturalWidth : 0, caption.textContent];
"""
PIXELS = """
    const image = document.querySelector("#whole img.sr");
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
"""


@needs_browser
def test_arrow_keys_on_a_slider_change_the_picture(swept: Sweep, window: Browser) -> None:
    window.open(swept.config.output / "index.html")
    first = window.run(SHOWN)
    assert first[1] == 96
    assert first[2] == "λ_pix = 1, λ_sem = 1, t = 1"
    before = window.run(PIXELS)
    window.press("#dial-lambda_pixel", ARROW_RIGHT)
    second = window.run(SHOWN)
    assert second[2] == "λ_pix = 2, λ_sem = 1, t = 1"
    assert second[0] != first[0]
    window.run("return document.querySelector('#whole img.sr').decode()")
    after = np.array(window.run(PIXELS)).reshape(72, 96, 4)[..., :3]
    assert not np.array_equal(after.ravel(), np.array(before).reshape(-1, 4)[:, :3].ravel())
    view = swept.views.whole(swept.photos[0].name, "lambda_pixel=2,lambda_semantic=1,timestep=1")
    assert np.abs(after.astype(int) - np.asarray(Image.open(view)).astype(int)).max() <= 2
    window.press("#dial-lambda_pixel", ARROW_LEFT)
    assert window.run(SHOWN) == first
    assert window.errors() == []


@needs_browser
def test_every_dial_photo_and_button_leads_to_its_picture_and_numbers(swept: Sweep, window: Browser) -> None:
    window.open(swept.config.output / "index.html")
    window.press("#dial-timestep", END)
    window.press("#dial-lambda_semantic", ARROW_LEFT)
    window.press("#photo", ARROW_RIGHT)
    photo = swept.photos[1]
    assert photo.name == "sub/c"
    assert window.run(SHOWN)[2] == "λ_pix = 1, λ_sem = 0, t = 500"
    record = swept.records.get(photo.name, "lambda_pixel=1,lambda_semantic=0,timestep=500")
    assert record is not None
    cells = window.run("return [...document.querySelectorAll('#values tbody td')].map((cell) => cell.textContent)")
    assert cells[1] == f"{record.metrics['psnr']:.2f}"
    now = window.run("return [...document.querySelectorAll('tr.now td')].slice(0, 3).map((cell) => cell.textContent)")
    assert now == ["1", "0", "500"]
    assert window.run("return document.querySelectorAll('#crops figure img').length") == 3
    best = page_of(swept).table.picks()[photo.name]
    window.click("#buttons button:last-child")
    texts = [axis.texts[step] for axis, step in zip(swept.grid.axes, best.place, strict=True)]
    assert window.run("return [...document.querySelectorAll('output')].map((each) => each.textContent)") == texts
    window.click("#buttons button:first-child")
    assert window.run(SHOWN)[2] == "λ_pix = 1, λ_sem = 1, t = 1"


@needs_browser
def test_controls_have_names_and_can_be_reached_by_keyboard(swept: Sweep, window: Browser) -> None:
    window.open(swept.config.output / "index.html")
    unnamed = "return [...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
    assert window.run(unnamed) == 0
    assert window.run("return [...document.images].filter((image) => !image.alt).length") == 0
    assert window.run("return document.querySelector('#dial-timestep').getAttribute('aria-valuetext')") == "1"
    reached = "return [...document.querySelectorAll('a, button, select, input, summary')].every((each) => each.tabIndex >= 0)"
    assert window.run(reached)


@needs_browser
def test_all_pictures_load_from_the_folder_wherever_it_is_moved(swept: Sweep, window: Browser, tmp_path: Path) -> None:
    page_of(swept, embed_bytes=1000).write()
    moved = tmp_path / "elsewhere #2"
    shutil.copytree(swept.config.output, moved)
    write_outputs(swept)
    window.open(moved / "index.html")
    window.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    window.run("for (const image of document.images) image.loading = 'eager'")
    window.run("return Promise.all([...document.images].map((image) => image.decode())).then(() => 1)")
    assert window.run("return [...document.images].every((image) => image.naturalWidth > 0)")
    first = window.run(SHOWN)
    window.press("#dial-lambda_pixel", ARROW_LEFT)
    assert window.run(SHOWN)[0] != first[0]
    assert "elsewhere%20%232" in first[0]
    assert window.errors() == []


@needs_browser
@pytest.mark.parametrize("width", [520, 1300])
def test_the_page_fits_narrow_and_wide_windows(swept: Sweep, window: Browser, tmp_path: Path, width: int) -> None:
    window.resize(width, 1000)
    window.open(swept.config.output / "index.html")
    assert window.run("return innerWidth") <= width
    assert window.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    window.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert np.asarray(image.convert("L")).std() > 10


@needs_browser
def test_a_rule_leads_to_its_settings_and_says_where_none_meets_its_floors(swept: Sweep, window: Browser) -> None:
    plain = {photo.name: {"psnr": 1.25, "ssim": 0.5} for photo in swept.photos}
    whole, rules = page_of(swept), ("ssim, psnr >= bicubic", "ssim, psnr >= 99")
    ruled = {rule: replace(whole.table, pick=parse_rule(rule), plain=plain) for rule in rules}
    opened = {}
    for rule, table in ruled.items():
        window.open(replace(whole, table=table).write())
        window.click("#buttons button:last-child")
        off = "return [...document.querySelectorAll('#buttons button:disabled')].map((each) => each.title)"
        bicubic = "return document.querySelector('#values tbody tr').children[5].textContent"
        opened[rule] = (window.run(SHOWN)[2], window.run(off), window.run(bicubic))
    write_outputs(swept)
    pick = ruled["ssim, psnr >= bicubic"].picks()[swept.photos[0].name]
    assert pick is not None
    assert opened["ssim, psnr >= bicubic"] == (ruled["ssim, psnr >= bicubic"].named(pick), [], "1.25")
    texts = ["No setting meets the floors.", "No setting of this photo meets the floors."]
    assert opened["ssim, psnr >= 99"] == ("λ_pix = 1, λ_sem = 1, t = 1", texts, "1.25")
    assert window.errors() == []
