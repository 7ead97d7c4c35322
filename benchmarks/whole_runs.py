"""What `benchmarks/s3diff.py --folder` measures: a step of S3Diff's training, and runs of what it made beside PiSA-SR."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from full_size import make_model
from measuring import alone, make_photos
from memory import report

NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PISA = {"PiSA-SR, its default": [], "PiSA-SR, lambda_semantic 0.5": ["--lambda-semantic", "0.5"]}
S3DIFF = {"S3Diff, guidance 1": ["--guidance-scale", "1"], "S3Diff, guidance 1.07": []}
NO_HUB = "losses = { lpips = 0.0, features = 5.0 }\ngan.network = 'efficientnet-lite0'\n"
"""A recipe without the networks that only the hub has."""


def compare(args: argparse.Namespace) -> None:
    """By the options of `benchmarks/s3diff.py`; prints what it finds."""
    folder = args.folder.resolve()
    random = alone(make_model, folder, args.divisor)
    row = ["[models.bare]", 'family = "s3diff"', "native_scale = 4", f'base = {{ path = "{folder / "base"}" }}', "tile = 768"]
    row += ["overlap = 256", 'prompts = { positive = "positive", negative = "negative" }']
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        unframed = random.read_text().replace("min_side = 128", "min_side = 0")  # else PiSA-SR would get a larger photo
        (work / "models.toml").write_text("\n".join([unframed, *row]) + "\n")
        (work / "recipe.toml").write_text(NO_HUB)
        alone(make_estimator, work)
        width, height = map(int, args.size.split("x"))
        photo, crop = make_photos(work / "photo", 1, (width, height)), make_photos(work / "crop", 1, (args.crop, args.crop))
        common = ["--device", args.device, "--dtype", NAMES[args.dtype], "--models-file", str(work / "models.toml")]
        train = [
            "train-semantic",
            "--model",
            "bare",
            "--estimator",
            f"{work}/estimator",
            "--data",
            str(crop),
            "-o",
            f"{work}/run",
        ]
        train += ["--recipe", f"{work}/recipe.toml", "--steps", "1", "--batch", "1", "--crop", str(args.crop), "--workers", "0"]
        show(f"training, a crop of {args.crop} px", [*train, "--val", "none", "--gradient-checkpointing", *common])
        for model, runs in (("random", PISA), (f"{work}/run", S3DIFF)):
            for name, options in runs.items():
                show(name, ["upscale", str(photo), "-o", f"{work}/{name}", "--model", model, "-q", *options, *common])


def show(name: str, words: list[str]) -> None:
    """Run srcli in a process of its own, and say what it took."""
    told = alone(busy, ["srcli", *words])
    device = f", device {told['device']:.1f} GB" if told["device"] else ""
    print(
        f"{name}: {told['seconds']:.0f} s with loading, {told['busy']:.0f} s of processors, {told['host']:.1f} GB{device}",
        flush=True,
    )


def busy(words: list[str]) -> dict[str, float]:
    """Run srcli in this process; what it took, and the processors' time, which other programs do not lengthen."""
    return {**report(words), "busy": time.process_time()}


def make_estimator(folder: Path) -> None:
    """Of the authors' size."""
    from srcli.families.s3diff import ESTIMATOR
    from srcli.families.s3diff.estimator import Estimator
    from srcli.networks.adapters import Adapter, AdapterInfo, save_adapter

    save_adapter(Adapter(ESTIMATOR, dict(Estimator().state_dict()), AdapterInfo(0, 0, stage=ESTIMATOR)), folder / ESTIMATOR)
