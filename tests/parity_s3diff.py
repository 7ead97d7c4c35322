"""Our S3Diff beside the recorded results of the reference: `python tests/parity_s3diff.py FOLDER` prints the errors.

The folder holds `cases.json`, a tiny base, the reference's checkpoints and what its official code computed (see the README
there). Files differ by a level or two, since the reference truncates where we round, as the colours' source before it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from srcli.engine import blend
from srcli.engine.framing import finish, prepare_canvas
from srcli.engine.restore import Engine, Limits
from srcli.families.s3diff.modulation import block_of
from srcli.families.s3diff.reference import convert
from srcli.families.s3diff.restorer import S3DiffRestorer, load
from srcli.images.codec import decode
from srcli.protocol.restoring import LoadOptions, Settings
from srcli.rows.spec import load_registry
from srcli.store.weights import sha256_of

COLOR_FIXES = {"nofix": "none", "adain": "adain", "wavelet": "wavelet"}


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors of one case; 0 of what was not recorded."""

    scores: float
    matrices: float
    latent: float
    prediction: float
    x0: float
    decoded: float
    levels: int
    fraction_differing: float

    def within(self, tolerance: dict[str, float]) -> bool:
        keys = ["deg_score", "model_pred", "latent", "model_pred", "x0", "decoded"]
        limits = [*(tolerance[f"{key}_max_abs"] for key in keys), tolerance["png_max_levels"]]
        return all(error <= limit for error, limit in zip(astuple(self)[:-1], limits, strict=True))


class Parity:
    """The cases of one folder, with the checkpoints converted once into `work`."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self.cases: list[dict[str, Any]] = json.loads((folder / "cases.json").read_text())["cases"]
        base = folder / "base"
        configs = [base / part / "config.json" for part in ("unet", "vae")]
        adapters = convert([folder / "de_net.pth", folder / "s3diff.pkl"], configs, work, str(base), "test")
        row = ["[models.parity]", 'family = "s3diff"', "native_scale = 4", f'base = {{ path = "{base}" }}']
        row += [f'adapters.{name} = {{ path = "{path}", sha256 = "{sha256_of(path)}" }}' for name, path in adapters.items()]
        (work / "models.toml").write_text("\n".join(row) + "\n")
        self.spec = load_registry(work / "models.toml")["parity"]

    def restorer(self, settings: Settings, dtype: torch.dtype = torch.float32) -> S3DiffRestorer:
        return load(self.spec, LoadOptions(torch.device("cpu"), dtype, (settings,), dtype_asked=True))

    @torch.inference_mode()
    def measure(self, case: dict[str, Any]) -> Errors:
        args, run = case["args"], np.load(self.folder / case["run"]["file"])
        settings = settings_of(case)
        restorer = self.restorer(settings)
        picture = decode(self.folder / case["input"])
        canvas = prepare_canvas(picture, 4, 0, "bilinear")
        mixture = restorer.mix(settings, canvas)
        scores = [*mixture.encoding]
        errors = [largest(np.array([scores]), run["deg_score_used"]), self._matrices(restorer, scores, run)]
        engine = Engine(restorer, Limits(args["latent_tiled_size"], args["latent_tiled_overlap"], 2, None), settings)
        lq = reference_input(canvas)
        (latent,) = engine._encode([lq], restorer.encoder(mixture.encoding))
        with reference_windows() if case["tiled"] else nullcontext():
            (prediction,) = engine._predict([lq], [mixture], [latent])
        errors += [largest(latent[None], run["latent"]), largest(prediction[None], run["model_pred"])]
        x0 = restorer.apply(latent, prediction)
        errors.append(largest(x0[None], run["x0_latent"]) if "x0_latent" in run else 0.0)
        (sr,) = engine._decode([x0], [lq])
        windows = np.stack([sr[:, y : y + 40, x : x + 40].numpy() for x, y in case["run"]["windows_xy"]])
        errors.append(largest(windows, run["decoded_windows"]))
        size = (canvas.width, canvas.height)
        finished = finish(picture, sr[:, : size[1], : size[0]], canvas, size, COLOR_FIXES[args["align_method"]])
        return Errors(*errors, *self._compare_file(case, finished.levels.astype(np.int16)))

    def _matrices(self, restorer: S3DiffRestorer, scores: list[float], run: Any) -> float:
        worst = 0.0
        for key in run:
            if key.startswith("de_mod__"):
                _, network, layer = key.split("__")
                ours = restorer._modulation.matrices(network, torch.tensor([scores]))[:, block_of(network, layer)]
                worst = max(worst, largest(ours, run[key]))
        return worst

    def _compare_file(self, case: dict[str, Any], ours: np.ndarray) -> tuple[int, float]:
        crops = [(crop["file"], crop["box_xyxy"]) for crop in case["output_png_crops"] or []]
        if case["output_png"]:
            crops = [(case["output_png"], [0, 0, ours.shape[1], ours.shape[0]])]
        differences = []
        for file, (x0, y0, x1, y1) in crops:
            theirs = np.asarray(Image.open(self.folder / file).convert("RGB")).astype(np.int16)
            differences.append(np.abs(ours[y0:y1, x0:x1] - theirs).ravel())
        difference = np.concatenate(differences)
        return int(difference.max()), float((difference > 1).mean())


def settings_of(case: dict[str, Any]) -> Settings:
    """Of the dials; without the scores where these are estimated."""
    scores = case["args"]["degradation_scores"]
    given = dict(zip(("blur", "noise"), scores, strict=True)) if isinstance(scores, list) else {}
    return {"guidance_scale": case["args"]["guidance_scale"], **given}


def reference_input(canvas: Any) -> Tensor:
    """The reference's own preparation: enlarged in floats, then mirrored to multiples of 64: (3, H, W) in [-1, 1]."""
    raw = canvas.at(1)
    lr = torch.from_numpy(raw.crop(0, 0, raw.height, raw.width)).permute(2, 0, 1)[None]
    large = functional.interpolate(lr, scale_factor=4, mode="bilinear") * 2 - 1
    below, beside = -large.shape[2] % 64, -large.shape[3] % 64
    return functional.pad(large.clamp(-1, 1), (0, beside, 0, below), mode="reflect")[0]


def reference_windows() -> Any:
    """Its blending of tiles, which takes t/2 for the middle of a tile's rows, and (t - 1)/2 for that of its columns."""
    calls: list[int] = []

    def weights(starts: tuple[int, ...], tile: int, length: int, context: int = 0) -> list[Tensor]:
        calls.append(1)
        if len(calls) % 2 == 0:
            return axis_weights(starts, tile, length, context)
        position = torch.arange(tile, dtype=torch.float64) - tile / 2
        shifted = torch.exp(-position.square() / (2 * blend.VARIANCE * tile**2))
        with mock.patch.object(blend, "gaussian_window", side_effect=lambda _: shifted.clone()):
            return axis_weights(starts, tile, length, context)

    axis_weights = blend.axis_weights
    return mock.patch.object(blend, "axis_weights", weights)


def largest(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder, bad = parser.parse_args().folder.resolve(), 0
    names = ("scores", "matrices", "latent", "predict", "x0", "decoded")
    print(f"{'case':22}", *(f"{name:>8}" for name in (*names, "levels", ">1 level")))
    with tempfile.TemporaryDirectory() as work:
        parity = Parity(folder, Path(work))
        for case in parity.cases:
            errors = parity.measure(case)
            bad += not errors.within(case["tolerance"])
            numbers = [
                *(f"{value:8.1e}" for value in astuple(errors)[:6]),
                f"{errors.levels:8}",
                f"{errors.fraction_differing:8.5f}",
            ]
            print(f"{case['name']:22}", *numbers, "" if errors.within(case["tolerance"]) else "OUTSIDE")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
