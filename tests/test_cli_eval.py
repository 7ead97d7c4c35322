"""`srcli eval` from its arguments to its table, its files and its exit code."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Done, srcli
from PIL import Image
from tiny_model import make_model

from srcli.config.eval import EvalConfig
from srcli.errors import ImageError, UsageError
from srcli.evaluation import metrics
from srcli.evaluation.metric_networks import FidNetwork
from srcli.images.fidelity import psnr_y, ssim_y


def srcli_eval(*arguments: object) -> Done:
    return srcli("eval", *arguments)


@dataclass
class Folders:
    """References and two methods' results: `good` differs by 2 levels of noise, `bad` by 20."""

    hq: Path
    good: Path
    bad: Path


@pytest.fixture
def folders(tmp_path: Path, photo: np.ndarray) -> Folders:
    generator = np.random.default_rng(3)
    made = Folders(tmp_path / "hq", tmp_path / "good", tmp_path / "bad")
    for index, name in enumerate(("a.png", "b.png", "sub/c.png")):
        hq = np.roll(photo, 7 * index, axis=1)
        for folder, level in ((made.hq, 0), (made.good, 2), (made.bad, 20)):
            picture = (hq + generator.normal(0, level, hq.shape)).clip(0, 255).astype(np.uint8)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / name)
    return made


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def mean(folder: Path, hq: Path, measure: object, names: tuple[str, ...] = ("a.png", "b.png", "sub/c.png")) -> float:
    assert callable(measure)
    return float(np.mean([measure(pixels(folder / name), pixels(hq / name)) for name in names]))


def test_json_holds_the_means_of_each_method_and_the_count_and_nothing_else(folders: Folders) -> None:
    done = srcli_eval(f"ours={folders.good}", folders.bad, "--hq", folders.hq, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {"methods", "images"}
    assert told["images"] == 3
    assert list(told["methods"]) == ["ours", "bad"]
    for name, folder in (("ours", folders.good), ("bad", folders.bad)):
        assert told["methods"][name] == pytest.approx(
            {"psnr": mean(folder, folders.hq, psnr_y), "ssim": mean(folder, folders.hq, ssim_y)}, abs=1e-9
        )


def test_the_table_marks_best_and_second_best_without_colours(folders: Folders) -> None:
    done = srcli_eval(folders.good, folders.bad, f"same={folders.good}", "--hq", folders.hq)
    assert "\x1b" not in done.stdout + done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith((" good ", " bad ", " same "))}
    assert rows["good"].count("*") == rows["same"].count("*") == 2
    assert rows["bad"].count("+") == 2
    assert "PSNR ↑" in done.stdout
    assert "3 images; * best, + second best" in done.stdout


def test_each_value_is_told_as_it_comes_and_quiet_keeps_errors_and_the_table_only(folders: Folders) -> None:
    done = srcli_eval(folders.good, "--hq", folders.hq)
    lines = [line for line in done.stderr.splitlines() if "PSNR" in line]
    assert [line.split()[0] for line in lines] == ["a", "b", "sub/c"]
    for before, after in (["-q"], []), ([], ["--quiet"]):
        quiet = srcli(*before, "eval", folders.good, "--hq", folders.hq, *after)
        assert (quiet.stderr, quiet.stdout) == ("", done.stdout)


def test_a_narrow_terminal_cuts_no_number(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    done = srcli_eval(f"a-rather-long-name={folders.good}", folders.bad, "--hq", folders.hq, "--ci")
    assert "…" not in done.stdout
    assert f"{mean(folders.good, folders.hq, ssim_y):.4f}" in done.stdout


def test_the_output_folder_gets_csv_json_summary_and_markdown(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = srcli_eval(folders.good, folders.bad, "--hq", folders.hq, "-o", out, "--json")
    rows = list(csv.DictReader((out / "per_image.csv").read_text().splitlines()))
    assert [(row["image"], row["method"]) for row in rows[:3]] == [("a", "good"), ("a", "bad"), ("b", "good")]
    assert float(rows[0]["psnr"]) == pytest.approx(psnr_y(pixels(folders.good / "a.png"), pixels(folders.hq / "a.png")))
    per_image = json.loads((out / "per_image.json").read_text())
    assert [(each["image"], each["method"]) for each in per_image] == [(row["image"], row["method"]) for row in rows]
    assert per_image[5]["ssim"] == pytest.approx(float(rows[5]["ssim"]))
    assert json.loads((out / "summary.json").read_text()) == json.loads(done.stdout)
    markdown = (out / "table.md").read_text()
    assert f"**{mean(folders.good, folders.hq, psnr_y):.2f}**" in markdown
    assert f"<u>{mean(folders.bad, folders.hq, psnr_y):.2f}</u>" in markdown


def test_every_file_without_counterpart_is_named_and_the_exit_code_tells(folders: Folders) -> None:
    (folders.good / "sub" / "c.png").unlink()
    (folders.hq / "b.png").unlink()
    done = srcli_eval(folders.good, "--hq", folders.hq, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["images"] == 1
    assert told["unmatched"] == [
        {"file": str(folders.good / "b.png"), "lacks": ["hq"]},
        {"file": str(folders.hq / "sub" / "c.png"), "lacks": ["good"]},
    ]
    for each in told["unmatched"]:
        assert each["file"] in done.stderr


def test_a_picture_that_fails_is_named_and_counts_for_no_row(folders: Folders, tmp_path: Path) -> None:
    Image.fromarray(pixels(folders.bad / "a.png")[:-1]).save(folders.bad / "a.png")
    (folders.good / "b.png").write_bytes(b"not a picture")
    done = srcli_eval(folders.good, folders.bad, "--hq", folders.hq, "--json", "-o", tmp_path / "out")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["images"] == 1
    assert told["methods"]["good"]["psnr"] == pytest.approx(mean(folders.good, folders.hq, psnr_y, ("sub/c.png",)))
    assert [each["file"] for each in told["failed"]] == [str(folders.bad / "a.png"), str(folders.good / "b.png")]
    assert "84 x 59 px" in told["failed"][0]["reason"]
    assert str(folders.bad / "a.png") in done.stderr
    written = (tmp_path / "out" / "per_image.csv").read_text()
    rows = {(row["image"], row["method"]): row for row in csv.DictReader(written.splitlines())}
    assert rows["a", "bad"]["psnr"] == ""
    assert rows["a", "bad"]["failure"]
    assert float(rows["a", "good"]["psnr"]) > 30


def test_a_reference_that_cannot_be_read_is_named_once(folders: Folders) -> None:
    (folders.hq / "a.png").write_bytes(b"")
    told = json.loads(srcli_eval(folders.good, folders.bad, "--hq", folders.hq, "--json").stdout)
    assert [each["file"] for each in told["failed"]] == [str(folders.hq / "a.png")]
    assert told["images"] == 2


def test_nothing_left_to_compare_is_exit_code_1_with_valid_json(folders: Folders) -> None:
    for path in folders.good.rglob("*.png"):
        path.write_bytes(b"")
    done = srcli_eval(folders.good, "--hq", folders.hq, "--json", "--ci")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["methods"], told["images"], len(told["failed"])) == ({"good": {}}, 0, 3)


def test_an_identical_pair_is_named_and_its_psnr_is_told_from_a_missing_one(folders: Folders, tmp_path: Path) -> None:
    (folders.good / "b.png").write_bytes((folders.hq / "b.png").read_bytes())
    done = srcli_eval(folders.good, "--hq", folders.hq, "--json", "--ci", "-o", tmp_path / "out", "-q")
    assert done.returncode == 0
    told = json.loads(done.stdout, parse_constant=pytest.fail)
    assert told["methods"]["good"] == {"psnr": "Infinity", "ssim": mean(folders.good, folders.hq, ssim_y)}
    assert told["identical"] == [{"file": str(folders.good / "b.png"), "reference": str(folders.hq / "b.png")}]
    named = f"`{folders.good / 'b.png'}` equals its reference `{folders.hq / 'b.png'}` in every pixel: its PSNR is infinite"
    assert " ".join(done.stderr.split()).count(named) == done.stderr.count("equals its reference") == 1
    assert (tmp_path / "out" / "per_image.csv").read_text().splitlines()[2].startswith("b,good,inf,1")
    per_image = json.loads((tmp_path / "out" / "per_image.json").read_text(), parse_constant=pytest.fail)
    assert [type(each["psnr"]) for each in per_image] == [float, str, float]


def test_names_in_csv_are_no_formulas_and_are_whole_in_json(folders: Folders, tmp_path: Path) -> None:
    stems = ["=cmd|' !A0", "+1+1", "-5", "-a", "@sum", "\tx", "\rx", "'=x", " =1", '=a",;', "plain-a"]
    for folder in (folders.good, folders.hq):
        for stem in stems:
            (folder / f"{stem}.png").write_bytes((folder / "a.png").read_bytes())
    done = srcli_eval(f"@ours={folders.good}", "--hq", folders.hq, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    expected = [
        "'=cmd|' !A0",
        "'+1+1",
        "-5",
        "'-a",
        "'@sum",
        "'\tx",
        "'\rx",
        "''=x",
        "' =1",
        "'=a\",;",
        "plain-a",
        "a",
        "b",
        "sub/c",
    ]
    assert set(rows) == set(expected)
    assert {row["method"] for row in rows.values()} == {"'@ours"}
    per_image = json.loads((tmp_path / "out" / "per_image.json").read_text())
    assert {each["image"] for each in per_image} == {*stems, "a", "b", "sub/c"}
    assert {each["method"] for each in per_image} == {"@ours"}


def test_intervals_are_told_and_rows_within_noise_marked(folders: Folders) -> None:
    options = [folders.good, f"same={folders.good}", folders.bad, "--hq", folders.hq, "--ci"]
    told = json.loads(srcli_eval(*options, "--json").stdout)
    for name in ("good", "bad"):
        low, high = told["ci"][name]["psnr"]
        assert low <= told["methods"][name]["psnr"] <= high
    table = srcli_eval(*options).stdout
    rows = {line.split()[0]: line for line in table.splitlines() if line.startswith((" good ", " bad ", " same "))}
    assert rows["same"].count("~") == 2
    assert "~" not in rows["bad"]
    assert "95%" in table


def test_crop_border_reaches_the_metric(folders: Folders) -> None:
    told = json.loads(srcli_eval(folders.bad, "--hq", folders.hq, "--metrics", "PSNR", "--crop-border", 8, "--json").stdout)
    expected = mean(folders.bad, folders.hq, lambda sr, hq: psnr_y(sr, hq, 8))
    assert told["methods"]["bad"] == {"psnr": pytest.approx(expected)}


def test_two_files_are_compared(folders: Folders) -> None:
    told = json.loads(srcli_eval(folders.bad / "a.png", "--hq", folders.hq / "b.png", "--json").stdout)
    assert told["methods"]["a.png"]["psnr"] == pytest.approx(psnr_y(pixels(folders.bad / "a.png"), pixels(folders.hq / "b.png")))


def test_a_missing_metric_is_told_with_its_command_while_others_are_computed(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    done = srcli_eval(folders.good, "--hq", folders.hq, "--metrics", "psnr,lpips,musiq", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert set(told["methods"]["good"]) == {"psnr"}
    assert set(told["missing"]) == {"lpips", "musiq"}
    assert "pip install 'srcli[iqa]'" in done.stderr
    assert "noncommercial" in done.stderr


def test_no_metric_at_all_is_exit_code_2(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    done = srcli_eval(folders.good, "--metrics", "niqe,musiq")
    assert done.returncode == 2
    assert "no metric can be computed" in done.stderr


def test_fetch_alone_fetches_and_says_what_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opened(names: tuple[str, ...], device: object, *, crop_border: int, allow_download: bool) -> metrics.Opened:
        asked.append((names, allow_download))
        return metrics.Opened((metrics.Metric(metrics.METRICS["lpips"], lambda sr, hq: 0.0),))

    monkeypatch.setattr(metrics, "open_metrics", opened)
    done = srcli_eval("--fetch", "--metrics", "lpips", "--json")
    assert (done.returncode, asked) == (0, [(("lpips",), True)])
    assert json.loads(done.stdout) == {"ready": ["lpips"], "missing": {}}


def test_a_metric_that_fails_on_one_picture_leaves_the_other_metrics(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fragile(sr: np.ndarray, hq: np.ndarray, border: int) -> float:
        calls.append(border)
        if len(calls) == 2:
            raise ImageError("too small for this metric")
        return 0.5

    monkeypatch.setattr(metrics, "ssim_y", fragile)
    done = srcli_eval(folders.good, "--hq", folders.hq, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert (told["images"], told["methods"]["good"]["ssim"]) == (3, 0.5)
    assert told["methods"]["good"]["psnr"] == pytest.approx(mean(folders.good, folders.hq, psnr_y))
    calls.clear()
    assert "SSIM over 2" in srcli_eval(folders.good, "--hq", folders.hq).stdout


def test_interruption_keeps_what_is_done(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(sr: np.ndarray, hq: np.ndarray, border: int) -> float:
        calls.append(border)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 30.0

    monkeypatch.setattr(metrics, "psnr_y", interrupted)
    done = srcli_eval(folders.good, "--hq", folders.hq, "--json", "-o", tmp_path / "out")
    assert done.returncode == 130
    assert json.loads(done.stdout)["images"] == 1
    assert len(json.loads((tmp_path / "out" / "per_image.json").read_text())) == 1
    assert "interrupted" in done.stderr


def test_fid_is_one_value_per_method_over_the_pictures_that_count(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def inception(batch: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return batch.float().mean(dim=(1, 2, 3))[:, None]

    monkeypatch.setattr(metrics, "_open_fid", lambda device, allow: FidNetwork(inception, device, width=1))
    (folders.bad / "b.png").write_bytes(b"")
    done = srcli_eval(folders.good, folders.bad, "--hq", folders.hq, "--metrics", "fid", "--json")
    told = json.loads(done.stdout)
    for name, folder in (("good", folders.good), ("bad", folders.bad)):
        sr, hq = ([float(pixels(place / each).mean()) for each in ("a.png", "sub/c.png")] for place in (folder, folders.hq))
        expected = (np.mean(sr) - np.mean(hq)) ** 2 + (np.std(sr, ddof=1) - np.std(hq, ddof=1)) ** 2
        assert told["methods"][name]["fid"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert len(seen) == 2 * 3 + 1, "a reference is looked at once for all methods"


def test_models_and_filters_upscale_first(folders: Folders, tmp_path: Path) -> None:
    lq = tmp_path / "lq"
    for path in folders.hq.rglob("*.png"):
        small = lq / path.relative_to(folders.hq)
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((21, 15), Image.Resampling.BICUBIC).save(small)
    (lq / "broken.png").write_bytes(b"")
    models = make_model(tmp_path / "model")
    options = ["--model", "small", "--models-file", models, "--device", "cpu", "--dtype", "fp32", "--baseline", "bicubic"]
    done = srcli_eval("--lq", lq, "--hq", folders.hq, *options, "--keep", tmp_path / "kept", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert list(told["methods"]) == ["small", "bicubic"]
    assert told["images"] == 3
    assert {each["file"] for each in told["failed"]} == {str(lq / "broken.png")}
    kept = tmp_path / "kept" / "bicubic"
    assert told["methods"]["bicubic"]["psnr"] == pytest.approx(mean(kept, folders.hq, psnr_y))
    assert (tmp_path / "kept" / "small" / "sub" / "c.png").is_file()


def test_a_model_that_is_a_folder_is_only_read(folders: Folders, tmp_path: Path) -> None:
    run = make_model(tmp_path / "runs" / "mine").parent
    mark = run / "a.png"
    Image.fromarray(pixels(folders.hq / "a.png")).save(mark)
    before = mark.read_bytes()
    options = ["--model", run, "--device", "cpu", "--dtype", "fp32", "--scale", 1]
    done = srcli_eval("--lq", folders.good, "--hq", folders.hq, *options, "--keep", tmp_path / "kept", "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["methods"]) == [str(run)]
    assert mark.read_bytes() == before
    (kept,) = (tmp_path / "kept").iterdir()
    assert sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*.png")) == ["a.png", "b.png", "sub/c.png"]


def test_several_models_have_a_row_each_at_the_dials_that_all_of_them_have(folders: Folders, tmp_path: Path) -> None:
    first, second = (make_model(tmp_path / name, semantic=name == "one").parent for name in ("one", "two"))
    second_row = second / "models.toml"
    second_row.write_text(second_row.read_text().replace("models.small", "models.lesser").replace("scale = 4", "scale = 2"))
    options = ["--lq", folders.good, "--hq", folders.hq, "--scale", 1, "--device", "cpu", "--dtype", "fp32"]
    options += ["--model", first, "--model", second, "--json"]
    told = json.loads(srcli_eval(*options, "--lambda-pixel", 0).stdout)
    assert list(told["methods"]) == [str(first), str(second)]
    assert told["images"] == 3
    refused = srcli_eval(*options, "--lambda-semantic", 0)
    assert refused.returncode == 2
    assert "the model `lesser` (PiSA-SR) has no dial `--lambda-semantic`" in refused.stderr


def test_inputs_that_fail_are_named_and_older_results_do_not_stand_in_for_them(folders: Folders, tmp_path: Path) -> None:
    options = ["--hq", folders.hq, "--baseline", "bicubic", "--scale", 1, "--keep", tmp_path / "kept"]
    assert srcli_eval("--lq", folders.good, *options).returncode == 0
    (folders.good / "a.png").write_bytes(b"broken")
    done = srcli_eval("--lq", folders.good, *options, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["images"] == 2
    assert str(folders.good / "a.png") in done.stderr.replace("\n", "")
    for path in folders.good.rglob("*.png"):
        path.write_bytes(b"broken")
    none = srcli_eval("--lq", folders.good, *options)
    assert none.returncode == 1
    assert "`bicubic` made no picture" in none.stderr
    assert str(folders.good / "sub" / "c.png") in none.stderr.replace("\n", "")


def test_a_name_that_is_no_utf8_is_written_as_it_is(folders: Folders, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    for folder in (folders.hq, folders.good):
        (folder / "a.png").rename(folder / name)
    done = srcli_eval(folders.good, "--hq", folders.hq, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert b"caf\xe9" in (tmp_path / "out" / "per_image.csv").read_bytes()
    assert len(json.loads((tmp_path / "out" / "per_image.json").read_text())) == 3


@pytest.mark.parametrize("name", ["summary.json", "table.md", "per_image.json"])
def test_results_that_cannot_be_written_are_told(folders: Folders, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    done = srcli_eval(folders.good, "--hq", folders.hq, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_row_name_cannot_break_the_markdown_table(folders: Folders, tmp_path: Path) -> None:
    srcli_eval(f"a|b={folders.good}", "--hq", folders.hq, "-o", tmp_path / "out")
    assert "| a\\|b |" in (tmp_path / "out" / "table.md").read_text()


def test_a_picture_without_spread_gets_no_word_of_intervals(folders: Folders) -> None:
    one = srcli_eval(folders.good / "a.png", "--hq", folders.hq / "a.png", "--ci")
    assert "bootstrap" not in one.stderr


def test_without_keep_nothing_is_left_behind(folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    arguments = ["--lq", folders.hq / "a.png", "--hq", folders.hq / "a.png", "--baseline", "nearest", "--scale", 1]
    assert srcli_eval(*arguments).returncode == 0
    assert list((tmp_path / "scratch").iterdir()) == []


def test_16_bits_are_mentioned_once(folders: Folders) -> None:
    for path in folders.good.rglob("*.png"):
        Image.fromarray(pixels(path)[..., 0].astype(np.uint16) * 257).save(path)
    done = srcli_eval(folders.good, "--hq", folders.hq)
    assert done.returncode == 0
    assert done.stderr.count("16 bits") == 1


def test_all_faults_of_the_command_line_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        EvalConfig(sr=("a/x", "b/x"), metrics=("psnr", "psrn"), crop_border=-1, model=("tiny",), scale=9, device="gpu")
    for part in (
        "called `x`",
        "`--metrics psrn`",
        "give `--hq`",
        "`--crop-border -1`",
        "`--lq`",
        "`--scale 9`",
        "`--device gpu`",
    ):
        assert part in caught.value.message
    assert "--help" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({}, "nothing to evaluate"),
        ({"sr": ("hq=x",), "hq": Path("y")}, "cannot be called `hq`"),
        ({"sr": ("x",), "hq": Path("y"), "keep": Path("z")}, "--keep"),
        ({"sr": ("x",), "hq": Path("y"), "dials": {"lambda_pixel": 1.0}}, "--lambda-pixel"),
        ({"sr": ("x",), "hq": Path("y"), "metrics": ()}, "names no metric"),
        ({"sr": ("x",), "hq": Path("y"), "metrics": ("psnr", "psnr")}, "`psnr` twice"),
        ({"lq": Path("x"), "hq": Path("y"), "baseline": ("area",)}, "--baseline area"),
        ({"sr": ("x",), "hq": Path("y"), "scale": 2.0}, "`--scale` is used with"),
        ({"sr": ("x",), "hq": Path("y"), "models_file": Path("z")}, "`--models-file` is used with"),
        ({"sr": ("x",), "hq": Path("y"), "dtype": "bf16"}, "`--dtype` is used with"),
        ({"sr": ("x",), "metrics": ("niqe",), "crop_border": 4}, "`--crop-border` is used with"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(settings: dict[str, object], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        EvalConfig(**settings)  # type: ignore[arg-type]


def test_names_come_from_the_argument_or_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run=3").mkdir()
    config = EvalConfig(sr=("ours=out/x", "run=3", "./y/", "."), hq=Path("hq"))
    expected = {"ours": Path("out/x"), "run=3": Path("run=3"), "y": Path("y"), tmp_path.name: Path()}
    assert config.methods == expected


def test_the_command_loads_no_heavy_library_before_it_runs() -> None:
    code = (
        "import sys; import srcli.cli.eval, srcli.cli.eval_inputs\n"
        "print([m for m in ('torch', 'cv2', 'numpy', 'torchmetrics', 'PIL') if m in sys.modules])"
    )
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": root})
    assert done.stdout.strip() == "[]"
