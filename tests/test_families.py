"""A method is one folder and one row: a trial family without base, weights or adapters, put beside the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DECLARATION = """
from srcli.protocol.declarations import Base, Dial, Family

FAMILY = Family(
    "Sharpened bicubic",
    dials=(Dial("amount", "a", "amount of the unsharp mask", None, 0, 5, usual=(0, 2)),),
    base=Base.NONE,
)
"""
RESTORER = '''
import torch
from torch.nn import functional
from srcli.protocol.restoring import Mixture, Part


class Sharpener:
    """On the raw input: its latent is the enlarged picture in cells of 4x4 pixels, its answers are of other channels."""

    factor, channels, answer_channels, input_scale, enlargement, cell_bytes = 4, 48, 3, 1, "bicubic", 1000
    answers_pixels, any_settings, parents, patch = False, False, {}, 4

    def __init__(self, spec, options):
        self.name, self.device, self.dtype, self.native_scale = spec.name, options.device, torch.float32, spec.native_scale
        self.min_side, self.tile, self.overlap = spec.min_side, spec.tile, spec.overlap
        self.tiling, self.margin, self.color_fix = spec.tiling, spec.margin, spec.color_fix
        self.decoder = (Part(lambda z, exact=False: functional.pixel_shuffle(z, 4), 3, 1, 4),)

    def encoder(self, encoding=None):
        def encode(picture, exact=False):
            large = functional.interpolate(picture, scale_factor=4, mode="nearest")
            return functional.pixel_unshuffle(large, 4)

        return (Part(encode, 48, 1, 1),)

    def mix(self, settings, picture):
        found = {} if "amount" in settings else {"amount": float(picture.at(1).crop(0, 0, 4, 4).mean().round(2))}
        amount = {**found, **settings}["amount"]
        return Mixture({"mask": amount} if amount else {}, facts=found)

    def predict_pass(self, key, latent, *, exact=False):
        mean = latent.unflatten(1, (3, 16)).mean(2)
        return functional.avg_pool2d(functional.pad(mean, (1, 1, 1, 1), mode="replicate"), 3, 1) - mean

    def apply(self, latent, prediction):
        return latent - prediction.repeat_interleave(16, 0)


load = Sharpener
'''
RUN = """
import contextlib, io, json, sys
import srcli.families
srcli.families.__path__.append(sys.argv[1])
from srcli.cli.main import main
done = []
for words in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["srcli", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main() or 0
        except SystemExit as end:
            code = end.code or 0
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """What each command said, all in one process that knows one family more."""
    home = tmp_path_factory.mktemp("trial")
    (home / "families" / "sharpen").mkdir(parents=True)
    (home / "families" / "sharpen" / "__init__.py").write_text(DECLARATION)
    (home / "families" / "sharpen" / "restorer.py").write_text(RESTORER)
    (home / "families" / "stray.py").write_text("raise RuntimeError('nobody imports this')\n")
    (home / "families" / "hollow").mkdir()
    (home / "families" / "hollow" / "__init__.py").write_text("")
    (home / "models.toml").write_text('[models.sharp]\nfamily = "sharpen"\nnative_scale = 4\ncolor_fix = "none"\n')
    (home / "hollow.toml").write_text('[models.h]\nfamily = "hollow"\nnative_scale = 4\n')
    photo = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(photo).save(home / "a.png")
    Image.fromarray(photo).resize((48, 36), Image.Resampling.NEAREST).save(home / "hq.png")
    model = ["--models-file", "models.toml", "--model", "sharp", "--device", "cpu"]
    commands = {
        "plain": ["upscale", "a.png", "-o", "plain.png", *model, "--amount", "0"],
        "sharp": ["upscale", "a.png", "-o", "sharp.png", *model, "--amount", "1"],
        "found": ["upscale", "a.png", "-o", "found.png", *model, "--report", "report.jsonl"],
        "foreign dial": ["upscale", "a.png", "-o", "x.png", *model, "--lambda-semantic", "0.3"],
        "map": ["upscale", "a.png", "-o", "x.png", *model, "--lambda-map", "a.png"],
        "foreign adapter": ["upscale", "a.png", "-o", "x.png", *model, "--pixel", "."],
        "out of range": ["upscale", "a.png", "-o", "x.png", *model, "--amount", "9"],
        "own dial elsewhere": ["upscale", "a.png", "-o", "x.png", "--amount", "1"],
        "sweep": ["sweep", "a.png", "-o", "swept", *model, "--amount", "0,1", "--hq", "hq.png", "--json"],
        "eval": ["eval", "--lq", "a.png", "--hq", "hq.png", *model, "--amount", "0", "--json"],
        "eval foreign": ["eval", "--lq", "a.png", "--hq", "hq.png", *model, "--lambda-pixel", "1"],
        "train": ["train-pixel", "--data", ".", "-o", "run", "--models-file", "models.toml", "--model", "sharp"],
        "show": ["models", "show", "sharp", "--models-file", "models.toml", "--json"],
        "hollow": ["upscale", "a.png", "-o", "x.png", "--models-file", "hollow.toml", "--model", "h"],
        "help": ["upscale", "--help"],
    }
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **{f"XDG_{kind}_HOME": str(home) for kind in ("CONFIG", "DATA", "CACHE")},
    }
    line = [sys.executable, "-W", "error", "-c", RUN, str(home / "families"), json.dumps(list(commands.values()))]
    ended = subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, check=True, timeout=120)
    results = {name: tuple(each) for name, each in zip(commands, json.loads(ended.stdout), strict=True)}
    for name in ("plain", "sharp", "found"):
        results[f"{name}.png"] = (0, str(np.asarray(Image.open(home / f"{name}.png")).astype(int).tolist()), "")
    results["report"] = (0, (home / "report.jsonl").read_text(), "")
    results["hq.png"] = (0, str(np.asarray(Image.open(home / "hq.png")).astype(int).tolist()), "")
    return results


def test_it_upscales_and_its_own_dial_turns(done: dict[str, tuple[int, str, str]]) -> None:
    assert [done[name][0] for name in ("plain", "sharp", "found")] == [0, 0, 0], done["plain"][2]
    assert done["plain.png"] == done["hq.png"]
    assert done["sharp.png"] != done["plain.png"]
    assert "--amount" in done["help"][1]


def test_a_dial_without_a_default_is_found_for_each_picture_and_told(done: dict[str, tuple[int, str, str]]) -> None:
    (line,) = map(json.loads, done["report"][1].splitlines())
    assert 0 < line["found"]["amount"] < 1
    assert done["found.png"] not in (done["plain.png"], done["sharp.png"])


def test_it_is_swept_and_measured(done: dict[str, tuple[int, str, str]]) -> None:
    assert (done["sweep"][0], done["eval"][0]) == (0, 0), done["sweep"][2] + done["eval"][2]
    told = json.loads(done["sweep"][1])
    assert (told["done"], told["images"]) == (2, 1)
    assert json.loads(done["show"][1])["dials"] == {"amount": None}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("map", ["(Sharpened bicubic) has no dial that `--lambda-map` could lead", "its dials: `--amount`"]),
        ("foreign dial", ["(Sharpened bicubic) has no dial `--lambda-semantic`", "its dials: `--amount`"]),
        ("foreign adapter", ["takes no pixel adapter", "adapters that it takes: none"]),
        ("out of range", ["`--amount 9` is not between 0 and 5"]),
        ("own dial elsewhere", ["the model `light` (super-resolution network) has no dial `--amount`"]),
        ("eval foreign", ["has no dial `--lambda-pixel`"]),
        ("train", ["has no training `train-pixel`", "its trainings: none"]),
        ("hollow", ["unknown `family` `hollow`"]),
    ],
)
def test_what_a_family_lacks_is_refused_by_name_before_any_work(
    done: dict[str, tuple[int, str, str]], name: str, words: list[str]
) -> None:
    code, out, err = done[name]
    assert (code, out) == (2, "")
    for word in words:
        assert word in err
    assert "Traceback" not in err
