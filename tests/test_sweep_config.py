"""What `srcli sweep` accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from srcli.config.sweep import Crop, SweepConfig, parse_values
from srcli.errors import UsageError

GOOD = SweepConfig(("in",), Path("out"), {"lambda_pixel": "0,1"})


def config(**changes: Any) -> SweepConfig:
    return replace(GOOD, **changes)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", (1.0,)),
        ("0,0.2,0.5", (0.0, 0.2, 0.5)),
        ("0:1.5:0.25", (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)),
        ("0:1:0.1", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        ("0:1:0.3", (0.0, 0.3, 0.6, 0.9)),
        ("0:3", (0.0, 1.0, 2.0, 3.0)),
        ("2:2:0.5", (2.0,)),
        ("1.5,0:1:0.5,0.5,1.0,0.50", (0.0, 0.5, 1.0, 1.5)),
        (" 1 , -0.5 : 0.5 : 0.5 ", (-0.5, 0.0, 0.5, 1.0)),
        ("1e2,1e-3", (0.001, 100.0)),
    ],
)
def test_lists_and_ranges_become_the_decimals_one_would_type(text: str, values: tuple[float, ...]) -> None:
    assert parse_values(text) == values


def test_minus_zero_is_zero() -> None:
    assert str(parse_values("-0")[0]) == "0.0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "missing"),
        ("1,,2", "missing"),
        ("a", "neither a number nor a range"),
        ("0:x:1", "neither"),
        ("nan", "not finite"),
        ("0:inf", "not finite"),
        ("1e999", "not finite"),
        ("0:1:0", "not positive"),
        ("0:1:-0.5", "not positive"),
        ("1:0:0.5", "ends before it starts"),
        ("0:1:2:3", "more than start, end and step"),
        ("0:1:0.0001", "over 1000 values"),
        ("0:999,2000:2001", "1002 values are over 1000"),
    ],
)
def test_what_is_no_list_is_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_values(text)


def test_every_fault_of_a_list_is_told() -> None:
    with pytest.raises(ValueError, match=r"`x`.*`1:0`"):
        parse_values("x,1,1:0")


def test_crops_are_read_and_repeats_dropped() -> None:
    settings = config(crop=("1,2,30,40", "5,6,7,8", "1, 2, 30, 40"))
    assert settings.crops == (Crop(1, 2, 30, 40), Crop(5, 6, 7, 8))
    assert settings.crops[0].text == "1,2,30,40"


def test_metrics_follow_from_references_and_the_pick() -> None:
    hq = Path("hq")
    assert config().all_metrics == ()
    assert config(hq=hq).all_metrics == ("psnr", "ssim")
    assert config(hq=hq, metrics=("lpips",), pick="psnr").all_metrics == ("lpips", "psnr")
    assert config(hq=hq, pick="psnr").all_metrics == ("psnr", "ssim")
    assert config(metrics=("niqe",)).all_metrics == ("niqe",)
    assert config(hq=hq, metrics=()).all_metrics == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": ()}, "no input"),
        ({"lists": {}}, "nothing to sweep"),
        ({"lists": {"lambda_pixel": "0:x"}}, "--lambda-pixel 0:x"),
        ({"lists": {"blur": ""}}, "missing between commas"),
        ({"lists": {"lambda_pixel": "0:1:0.01", "lambda_semantic": "0:1:0.01"}}, "10201 settings"),
        ({"adapters": {"semantic": (Path("a"), Path("./a"))}}, "names one adapter twice"),
        ({"metrics": ("psnr",)}, "give `--hq`"),
        ({"pick": "psnr"}, "give `--hq`"),
        ({"metrics": ("fid",), "hq": Path("hq")}, "srcli eval"),
        ({"metrics": ("good",)}, "`--metrics good` is none of"),
        ({"metrics": ("niqe", "niqe")}, "twice"),
        ({"pick": "best"}, "`--pick best`"),
        ({"crop_border": -1}, "--crop-border -1"),
        ({"crop": ("1,2,3",)}, "--crop 1,2,3"),
        ({"crop": ("0,0,0,5",)}, "--crop 0,0,0,5"),
        ({"crop": ("-1,0,5,5",)}, "--crop -1,0,5,5"),
        ({"scale": 9.0}, "--scale 9"),
        ({"tile": 10}, "--tile 10"),
        ({"tile": 128, "overlap": 128}, "--overlap 128"),
        ({"overlap": -1}, "--overlap -1"),
        ({"batch": 0}, "--batch 0"),
        ({"cell_px": 10}, "--cell-size 10"),
        ({"color_fix": "blue"}, "blue"),
        ({"format": "gif"}, "gif"),
        ({"quality": 0}, "--quality 0"),
        ({"quality": 80}, "`--quality` is used with"),
        ({"format": "webp"}, "`--format` is used with"),
        ({"crop_border": 4}, "`--crop-border` is used with"),
        ({"lists": {"lambda_pixel": "0:10:1e-999999"}}, "has over 1000 values"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_wrong_settings_are_refused_in_their_own_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(**changes)
    assert words in caught.value.message
    assert "srcli sweep --help" in caught.value.hint


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        config(lists={"lambda_semantic": "a"}, crop=("x",), batch=0, metrics=("psnr",))
    for words in ("4 options are wrong", "`a`", "--crop x", "--batch 0", "--hq"):
        assert words in caught.value.message


def test_several_adapters_are_a_sweep_without_any_dial() -> None:
    assert config(lists={}, adapters={"semantic": (Path("a"), Path("b"))}).dials == {}
