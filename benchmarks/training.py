"""Memory and time of a training step at the full size of Stable Diffusion 2.1, ours against the straightforward way.

    python benchmarks/training.py --batch 1 2

Networks are built from their configurations with random weights (speed and memory do not depend on the values). Each case runs
in a process of its own, which trains the semantic stage (squared error and score distillation, LPIPS off) for two steps and
reports the time of the second and the process's peak memory.

    plain   as the reference code computes: weights in float32 under autocast, a second UNet as teacher, one graph from the UNet
            through the decoder to the loss for the whole batch
    ours    `srcli train-semantic` as it is: frozen weights in the run's precision, the UNet without its adapters as teacher, the
            decoder differentiated a picture at a time
    saving  ours with `--gradient-checkpointing`
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from full_size import make_adapter, make_base

CASES = ("plain", "ours", "saving")


def run_case(case: str, base: Path, pixel: Path, photos: Path, batch: int, crop: int, device: str) -> dict[str, float]:
    """Two steps in this process; seconds of the second, peak memory in GB and what was foretold."""
    from srcli.config.recipe_file import build_recipe
    from srcli.config.training import Prompts, TrainConfig
    from srcli.training.data.crops import finish
    from srcli.training.loop import Run
    from srcli.training.setup import Setup

    recipe = build_recipe("semantic", [{"batch": batch, "crop": crop, "steps": 2, "losses": {"lpips": 0.0}}])
    config = TrainConfig(
        "semantic", (str(photos),), photos / "run", recipe, base_name="random", pixel=pixel, val="none", workers=0,
        prompts=Prompts("", "positive", "negative"), device=device, gradient_checkpointing=case == "saving",
    )  # fmt: skip
    setup = Setup(config, base)
    run = Run(setup)
    step = plain_step(setup, base) if case == "plain" else run._backward
    for number in range(2):
        samples = [setup.crops[number * batch + i] for i in range(batch)]
        start = time.perf_counter()
        step(finish(samples, setup.accelerator.device))
        setup.optimiser.step()
        setup.optimiser.zero_grad()
        if setup.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    if setup.accelerator.device.type == "cuda":
        return {"seconds": seconds, "gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"seconds": seconds, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def plain_step(setup: Any, base: Path) -> Any:
    """The same losses as one graph, with a teacher of its own and float32 weights."""
    from srcli.families.pisasr.csd import csd, draw_timesteps_and_noise
    from srcli.networks.backbone import load_unet

    networks = setup.networks
    device = networks.device
    networks.unet.to(torch.float32)
    networks.autoencoder.network.to(torch.float32)
    teacher = load_unet(base).to(device, networks.dtype)

    def ask(noisy: Any, timestep: Any, embedding: Any) -> Any:
        with networks.autocast():
            return teacher(noisy, timestep, encoder_hidden_states=embedding).sample.float()

    def step(batch: Any) -> None:
        with torch.no_grad(), networks.autocast():
            z_lq = networks.autoencoder.encode(batch.lq).float()
        z_sr = networks.restore(z_lq, networks.embed([""] * len(z_lq)))
        with networks.autocast():
            sr = networks.autoencoder.decode(z_sr)
        loss = (sr.float() - batch.hq).square().mean()
        timestep, noise = draw_timesteps_and_noise(batch.indices, z_sr.shape[1:], device=device)
        prompts = [networks.embed([name] * len(z_sr)) for name in ("positive", "negative")]
        loss = loss + csd(z_sr, ask, *prompts, timestep, noise, networks.alphas, 7.5)
        loss.backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="keep the random networks here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        base, pixel, photos = folder / "base", folder / "adapter", folder / "photos"
        if args.one:
            print(json.dumps(run_case(args.one, base, pixel, photos, args.batch[0], args.crop, args.device)))
            return
        if not base.is_dir():
            make_base(base)
            make_adapter(base, pixel, "pixel")
            make_photos(photos, args.crop)
        for batch in args.batch:
            results: dict[str, dict[str, float]] = {}
            for case in args.cases:
                words = ["--one", case, "--batch", str(batch), "--crop", str(args.crop), "--device", args.device]
                done = subprocess.run(
                    [sys.executable, __file__, *words, "--folder", str(folder)], stdout=subprocess.PIPE, text=True, check=False
                )
                if done.returncode:
                    print(f"batch {batch} {case}: failed with code {done.returncode}", flush=True)
                    continue
                results[case] = json.loads(done.stdout.splitlines()[-1])
                told = results[case]
                line = f"batch {batch} {case}: {told['gb']:.1f} GB, {told['seconds']:.1f} s a step"
                if "plain" in results:
                    memory, duration = (told[key] / results["plain"][key] for key in ("gb", "seconds"))
                    line += f"; {memory:.2f} of plain's memory, {duration:.2f} of its time"
                print(line, flush=True)


def make_photos(folder: Path, crop: int) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (crop // 8, crop // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((crop, crop), Image.Resampling.BICUBIC).save(folder / "photo.png")


if __name__ == "__main__":
    main()
