"""Our PiSA-SR beside the recorded results of the reference implementation: `python tests/parity.py FOLDER` prints the errors.

The folder holds `cases.json`, a tiny base, the reference's checkpoint and what its official code computed (see the README there).
`python tests/parity.py --csd FOLDER` does the same for score distillation, whose teacher's path is in the cases.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from srcli.engine.framing import finish, prepare_canvas
from srcli.engine.restore import Engine, Limits
from srcli.families.pisasr.csd import add_noise, csd, estimate_clean
from srcli.families.pisasr.reference import convert
from srcli.families.pisasr.restorer import PisaRestorer, load
from srcli.images.codec import decode
from srcli.networks.backbone import load_alphas, load_unet
from srcli.protocol.restoring import LoadOptions, Settings
from srcli.rows.spec import load_registry
from srcli.store.weights import sha256_of

COLOR_FIXES = {"nofix": "none", "adain": "adain", "wavelet": "wavelet"}


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors of one case; levels are None where size or enlargement differ on purpose."""

    latent: float
    residual: float
    decoded: float
    levels: int | None
    fraction_differing: float | None

    def within(self, tolerance: dict[str, float]) -> bool:
        fine = self.latent <= tolerance["latent_max_abs"] and self.residual <= tolerance["residual_max_abs"]
        fine = fine and self.decoded <= tolerance["decoded_max_abs"]
        return fine and (self.levels is None or self.levels <= tolerance["png_max_levels"])


class Parity:
    """The cases of one folder, with the adapters converted once into `work`."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder = folder
        self.cases: list[dict[str, Any]] = json.loads((folder / "cases.json").read_text())["cases"]
        convert([folder / "pisa_sr.pkl"], [folder / "base" / "unet" / "config.json"], work, str(folder / "base"), "test")
        row = ["[models.parity]", 'family = "pisasr"', f'base = {{ path = "{folder / "base"}" }}']
        row += [
            'licence = "test"',
            'source = "test"',
            "native_scale = 4",
            "timestep = 1",
            "tile = 768",
            "overlap = 256",
        ]
        row += ["min_side = 128", 'description = "test"']
        for name in ("pixel", "semantic"):
            path = work / name / "adapter_model.safetensors"
            row += [f"[models.parity.adapters.{name}]", f'path = "{path}"', f'sha256 = "{sha256_of(path)}"']
        (work / "models.toml").write_text("\n".join(row) + "\n")
        self.spec = load_registry(work / "models.toml")["parity"]

    def restorer(self, lambda_pixel: float, lambda_semantic: float, dtype: torch.dtype = torch.float32) -> PisaRestorer:
        settings = settings_of(lambda_pixel, lambda_semantic)
        return load(self.spec, LoadOptions(torch.device("cpu"), dtype, (settings,)))

    @torch.inference_mode()
    def measure(self, case: dict[str, Any]) -> Errors:
        args = case["args"]
        restorer = self.restorer(args["lambda_pix"], args["lambda_sem"])
        limits = Limits(args["latent_tiled_size"], args["latent_tiled_overlap"], 2, None)
        engine = Engine(restorer, limits, settings_of(args["lambda_pix"], args["lambda_sem"]))
        picture = decode(self.folder / case["input"])
        canvas = reference_canvas(self.folder / case["input"])
        assert _sha(canvas) == case["latent"]["upscaled_sha256_of_rgb_bytes"]
        lq = torch.from_numpy(canvas.astype(np.float32) / 255).permute(2, 0, 1) * 2 - 1
        run = np.load(self.folder / case["run"]["file"])

        (latent,) = engine._encode([lq], restorer.encoder())
        (residual,) = engine._predict([lq], engine.mix([lq]), [latent])
        (sr,) = engine.restore([lq])
        windows = np.stack([sr[:, y : y + 40, x : x + 40].numpy() for x, y in case["run"]["windows_xy"]])
        levels, fraction = None, None
        ours = prepare_canvas(picture, 4, 128, "bicubic")
        if (ours.height, ours.width) == canvas.shape[:2]:
            whole = ours.crop(0, 0, ours.height, ours.width)
            assert np.array_equal((whole * 255).round().astype(np.uint8), canvas), "our own preparation differs"
            (x, y) = (4 * side for side in case["input_size_wh"])
            finished = finish(picture, sr, ours, (x, y), COLOR_FIXES[args["align_method"]])
            levels, fraction = self._compare_file(case, finished.levels.astype(np.int16))
        return Errors(
            float(np.abs(latent.numpy() - np.load(self.folder / case["latent"]["file"])["latent"]).max()),
            float(np.abs(residual.numpy() - run["residual"]).max()),
            float(np.abs(windows - run["decoded_windows"]).max()),
            levels,
            fraction,
        )

    def _compare_file(self, case: dict[str, Any], ours: np.ndarray) -> tuple[int, float]:
        crops = [(crop["file"], crop["box_xyxy"]) for crop in case["output_png_crops"] or []]
        if case["output_png"]:
            crops = [(case["output_png"], [0, 0, ours.shape[1], ours.shape[0]])]
        worst, differing, count = 0, 0, 0
        for file, (x0, y0, x1, y1) in crops:
            theirs = np.asarray(Image.open(self.folder / file).convert("RGB")).astype(np.int16)
            difference = np.abs(ours[y0:y1, x0:x1] - theirs)
            worst = max(worst, int(difference.max()))
            differing += int((difference > 1).sum())
            count += difference.size
        return worst, differing / count


def settings_of(lambda_pixel: float, lambda_semantic: float) -> Settings:
    """Of all dials."""
    return {"lambda_pixel": lambda_pixel, "lambda_semantic": lambda_semantic, "timestep": 1}


@lru_cache
def reference_canvas(path: Path) -> np.ndarray:
    """The reference's own preparation, which also floors the size to multiples of 8: (H, W, 3) uint8."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    if min(width, height) < 128:
        factor = 128 / min(width, height)
        image = image.resize((int(factor * width), int(factor * height)), Image.Resampling.BICUBIC)
    image = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
    floored = (image.width // 8 * 8, image.height // 8 * 8)
    return np.asarray(image if image.size == floored else image.resize(floored, Image.Resampling.LANCZOS))


def _sha(canvas: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(canvas).tobytes()).hexdigest()


@dataclass(frozen=True)
class CsdErrors:
    """Largest absolute errors of one case of score distillation, over all arrays of a kind; that of the loss is relative."""

    noisy: float
    eps: float
    clean: float
    loss: float
    gradient: float

    def within(self, tolerance: dict[str, float]) -> bool:
        limits = [tolerance[key] for key in ("eps_max_abs", "eps_max_abs", "mu_max_abs", "loss_rel", "grad_max_abs")]
        ours = (self.noisy, self.eps, self.clean, self.loss, self.gradient)
        return all(error <= limit for error, limit in zip(ours, limits, strict=True))


class CsdParity:
    """The cases of one folder, each with a teacher and a schedule given relative to the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[dict[str, Any]] = json.loads((folder / "cases.json").read_text())["cases"]

    def measure(self, case: dict[str, Any]) -> CsdErrors:
        run = {key: torch.from_numpy(value) for key, value in np.load(self.folder / case["file"]).items()}
        alphas = load_alphas((self.folder / case["scheduler"]).parent)
        answers = []

        def teacher(noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
            unet = _unet(self.folder / case["teacher"])
            answers.append(unet(noisy, timestep, encoder_hidden_states=embedding).sample)
            return answers[-1]

        z_sr, noise, timestep = run["latents"].clone().requires_grad_(), run["noise"], run["timestep"]
        prompts = run["prompt_embeds"], run["negative_prompt_embeds"]
        loss = csd(z_sr, teacher, *prompts, timestep, noise, alphas, case["cfg"])
        loss.backward()
        noisy = add_noise(run["latents"], noise, timestep, alphas)
        (answer,) = answers
        negative, positive = answer.chunk(2)
        guided = negative + case["cfg"] * (positive - negative)
        clean = [estimate_clean(noisy, eps, timestep, alphas) for eps in (negative, guided)]
        return CsdErrors(
            _largest(noisy - run["noisy_latents"]),
            max(_largest(negative - run["eps_uncond"]), _largest(positive - run["eps_text"])),
            max(_largest(clean[0] - run["mu_fake"]), _largest(clean[1] - run["mu_real"])),
            abs(float(loss.detach()) / float(run["loss"]) - 1),
            _largest(z_sr.grad - run["grad_latents"]),
        )


@lru_cache
def _unet(folder: Path) -> Any:
    return load_unet(folder.parent)


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--csd", action="store_true", help="the folder holds cases of score distillation")
    args = parser.parse_args()
    folder = args.folder.resolve()
    sys.exit(bool(print_csd(folder) if args.csd else print_pictures(folder)))


def print_csd(folder: Path) -> int:
    """How many cases are outside."""
    bad = 0
    parity = CsdParity(folder)
    print(f"{'case':34} {'noisy':>9} {'eps':>9} {'clean':>9} {'loss rel':>9} {'gradient':>9} {'allowed':>9}")
    for case in parity.cases:
        errors = parity.measure(case)
        fine = errors.within(case["tolerance"])
        bad += not fine
        numbers = f"{errors.noisy:9.1e} {errors.eps:9.1e} {errors.clean:9.1e} {errors.loss:9.1e} {errors.gradient:9.1e}"
        print(f"{case['name']:34} {numbers} {case['tolerance']['grad_max_abs']:9.1e}{'' if fine else '  OUTSIDE'}")
    return bad


def print_pictures(folder: Path) -> int:
    """How many cases are outside."""
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        parity = Parity(folder, Path(work))
        print(f"{'case':34} {'latent':>9} {'residual':>9} {'decoded':>9} {'levels':>6} {'>1 level':>9}")
        for case in parity.cases:
            errors = parity.measure(case)
            fine = errors.within(case["tolerance"])
            bad += not fine
            levels = "-" if errors.levels is None else str(errors.levels)
            fraction = "-" if errors.fraction_differing is None else f"{errors.fraction_differing:.5f}"
            numbers = f"{errors.latent:9.1e} {errors.residual:9.1e} {errors.decoded:9.1e} {levels:>6} {fraction:>9}"
            print(f"{case['name']:34} {numbers}{'' if fine else '  OUTSIDE'}")
    return bad


if __name__ == "__main__":
    main()
